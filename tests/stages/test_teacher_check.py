"""The check of a teacher at the command: what it rejects, what it lets pass, and who says so."""

import importlib
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ArtefactMismatch, ConfigError
from stages import cache_teacher, prepare, train_student, train_teacher
from stages.cache.verify import recompute
from stages.config.root import Config
from tests.support.networks import IMAGENET, coloured_digits, network, trained, with_rows

ARCH = "tests.support.networks:layers"
NAMES = [str(number) for number in range(1, 11)]
"""Folders of the digits 0 to 9: as text 1, 10, 2, ... 9."""


def save_digits(folder: Path, names: list[str], *, count: int = 300) -> None:
    images, labels = coloured_digits()
    for number in range(count):
        path = folder / names[int(labels[number])] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images under the names 1 to 10, prepared, and a teacher in the order of the numbers."""
    folder = tmp_path_factory.mktemp("digits")
    save_digits(folder / "images" / "train", NAMES)
    save_digits(folder / "images" / "test", NAMES, count=60)
    images, labels = coloured_digits()
    teacher = trained(images[400:1200], labels[400:1200], IMAGENET)
    torch.save({"model": teacher.model.state_dict()}, folder / "numbers.pth")
    prepare.execute(config_of(folder))
    return folder


def config_of(folder: Path, **teacher) -> Config:
    settings = {
        "checkpoint": folder / "numbers.pth",
        "arch": ARCH,
        "mean": IMAGENET[0],
        "std": IMAGENET[1],
        "class_order": "natural",
        "precision": "fp32",
    } | teacher
    return Config.model_validate(
        {
            "workspace": folder / "ws",
            "caches": str(folder / "caches"),
            "prepare": {"source": "folder", "path": folder / "images", "duplicates": "allow"},
            "views": {"padding": 1, "flip": False, "count": 1},
            "cache_teacher": {k: v for k, v in settings.items() if v is not None},
        }
    )


def caches(folder: Path) -> set[str]:
    return {path.name for path in (folder / "caches").glob("*") if path.is_dir()}


def rejected(config: Config, error=ConfigError) -> str:
    with pytest.raises(error) as caught:
        cache_teacher.execute(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_right_teacher_in_natural_order_is_cached_and_verified(folder, caplog):
    config = config_of(folder)
    with caplog.at_level(logging.INFO):
        cache = cache_teacher.execute(config)
    assert cache.summary.accuracy_training[0] > 0.95
    assert "better than a guess" not in caplog.text
    assert recompute(config, share=0.1, tolerance=None).is_fine


def test_numbers_sorted_as_text_need_an_order(folder):
    line = rejected(config_of(folder, class_order=None))
    assert "1, 10, 2, 3" in line
    assert '`cache_teacher.class_order = "natural"`' in line
    assert '`cache_teacher.class_order = "text"`' in line
    assert "cache_teacher.class_names" in line


def test_the_wrong_order_stops_before_anything_is_written(folder):
    before = caches(folder)
    line = rejected(config_of(folder, class_order="text"))
    assert 'set `cache_teacher.class_order = "natural"`' in line
    assert '`cache_teacher.check_teacher = "warn"`' in line
    assert caches(folder) == before


def test_another_order_is_given_as_a_map_to_paste(folder, tmp_path):
    rows = [1, 0, *range(2, 10)]
    images, labels = coloured_digits()
    teacher = trained(images[400:1200], labels[400:1200], IMAGENET)
    torch.save(with_rows(teacher, rows).model.state_dict(), tmp_path / "w.pth")
    line = rejected(config_of(folder, checkpoint=tmp_path / "w.pth"))
    assert "remove `cache_teacher.class_order`" in line
    table = line.partition("`cache_teacher.class_map = {")[2].partition("}")[0]
    class_map = {
        name.strip('" '): int(row)
        for name, row in (entry.split("=") for entry in table.split(", "))
    }
    assert class_map == dict(zip(NAMES, rows, strict=True))
    fixed = config_of(
        folder,
        checkpoint=tmp_path / "w.pth",
        class_order=None,
        num_classes=10,
        class_map=class_map,
    )
    assert cache_teacher.execute(fixed).summary.accuracy_training[0] > 0.95


def test_the_wrong_normalisation_is_named_or_cached_on_purpose(folder, caplog):
    wrong = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    line = rejected(config_of(folder, **wrong))
    assert "`cache_teacher.mean = [0.485, 0.456, 0.406]`" in line
    assert "`cache_teacher.std = [0.229, 0.224, 0.225]`" in line
    with caplog.at_level(logging.WARNING):
        cache = cache_teacher.execute(config_of(folder, **wrong, check_teacher="warn"))
    assert "[0.485, 0.456, 0.406]" in caplog.text
    assert cache.summary.accuracy_training[0] < 0.7
    again = cache_teacher.execute(config_of(folder, **wrong))  # it exists, so nothing is checked
    assert again.id == cache.id


def test_the_check_can_be_switched_off(folder, caplog):
    wrong = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    with caplog.at_level(logging.WARNING):
        cache_teacher.execute(config_of(folder, **wrong, check_teacher="off"))
    assert "right on" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}, ("0.485", "0.229")),
        ({"mean": (0.5, 0.5, 0.5), "std": (127.5, 127.5, 127.5)}, ("std", "255", "0.5")),
        ({"mean": (-0.1, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, ("mean", "from 0 to 1")),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 0.5, 0.5)}, ("std", "above 0")),
    ],
)
def test_a_normalisation_of_another_scale_is_rejected(folder, settings, parts):
    line = rejected(config_of(folder, **settings))
    assert all(part in line for part in parts)


def test_channels_of_blue_green_red_work_in_the_cache_and_its_verification(folder, tmp_path):
    state = torch.load(folder / "numbers.pth", weights_only=True)["model"]
    swapped = state | {"0.weight": state["0.weight"].flip(1)}  # the same network, for BGR
    torch.save(swapped, tmp_path / "bgr.pth")
    line = rejected(config_of(folder, checkpoint=tmp_path / "bgr.pth"))
    assert '`cache_teacher.channels = "bgr"`' in line
    config = config_of(folder, checkpoint=tmp_path / "bgr.pth", channels="bgr")
    cache, plain = cache_teacher.execute(config), cache_teacher.execute(config_of(folder))
    np.testing.assert_allclose(cache.logits(0), plain.logits(0), rtol=0, atol=0.05)
    assert recompute(config, share=0.1, tolerance=None).is_fine
    assert cache.manifest.identity.weights != plain.manifest.identity.weights
    as_rgb = config_of(folder, checkpoint=tmp_path / "bgr.pth", check_teacher="off")
    assert cache_teacher.execute(as_rgb).id != cache.id


# Code of your own


CODE = """\
from torch import nn
from tests.support.networks import layers


def make(num_classes):
    made = layers(num_classes)
    made[2] = nn.{activation}()
    return made
"""


def write_code(folder: Path, activation: str) -> None:
    (folder / "own_network.py").write_text(CODE.format(activation=activation))
    sys.modules.pop("own_network", None)
    importlib.invalidate_caches()
    for compiled in folder.glob("__pycache__/own_network*"):
        compiled.unlink()


@pytest.fixture
def own(folder, tmp_path, monkeypatch):
    """A configuration with a network in a file, which a test can change."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_code(tmp_path, "ReLU")
    config = config_of(folder, arch="own_network:make", check_teacher="off")
    yield config.model_copy(update={"caches": str(tmp_path / "caches")})
    sys.modules.pop("own_network", None)


def test_changed_code_of_a_network_is_rejected_and_restored_code_is_not(own, tmp_path, caplog):
    cache = cache_teacher.execute(own)
    write_code(tmp_path, "GELU")
    line = rejected(own, ArtefactMismatch)
    assert "other code of own_network:make" in line
    assert "`cache_teacher.arch`" in line
    write_code(tmp_path, "ReLU")
    with caplog.at_level(logging.INFO):
        assert cache_teacher.execute(own).root == cache.root
    assert "nothing to do" in caplog.text


def test_changed_code_does_not_complete_a_cache_that_was_begun(own, tmp_path):
    rows = {"shard_rows": 64}
    own = own.model_copy(update={"cache_teacher": own.cache_teacher.model_copy(update=rows)})
    assert cache_teacher.execute(own, shards=range(2)) is None
    write_code(tmp_path, "GELU")
    assert "other code of own_network:make" in rejected(own, ArtefactMismatch)
    write_code(tmp_path, "ReLU")
    assert cache_teacher.execute(own) is not None


def test_a_shared_cache_of_other_code_is_not_fetched(own, tmp_path):
    cache_teacher.execute(own)
    mine = {"share": own.caches, "caches": str(tmp_path / "mine")}
    write_code(tmp_path, "Sigmoid")
    line = rejected(own.model_copy(update=mine), ArtefactMismatch)
    assert str(tmp_path / "caches") in line
    assert not list((tmp_path / "mine").glob("*/sealed.json"))


def test_a_cache_of_the_top_logits_is_compared_as_well(own, tmp_path):
    top = {"top_k": 3}
    own = own.model_copy(update={"cache_teacher": own.cache_teacher.model_copy(update=top)})
    cache_teacher.execute(own)
    cache_teacher.execute(own)
    write_code(tmp_path, "Tanh")
    assert "other code" in rejected(own, ArtefactMismatch)


def test_runs_of_changed_code_are_rejected_too(own, tmp_path):
    few = {"epochs": 3, "batch_size": 50, "lr": 0.05, "precision": "fp32", "head": "8"}
    config = Config.model_validate(
        {
            **own.model_dump(include={"workspace", "prepare", "views"}, exclude_defaults=True),
            "train_teacher": few | {"arch": "own_network:make", "name": "changed-teacher"},
            "train_student": few | {"arch": "own_network:make", "distil": False, "name": "changed"},
        }
    )
    for execute in (train_teacher.execute, train_student.execute):
        write_code(tmp_path, "ReLU")
        run = execute(config)
        assert execute(config).path == run.path
        write_code(tmp_path, "Sigmoid")
        with pytest.raises(ArtefactMismatch, match="other code of own_network:make") as caught:
            execute(config)
        assert "\n" not in str(caught.value)


# Teachers and students of one's own that end at chance


def test_a_training_of_few_steps_names_the_steps_and_the_settings(folder, caplog):
    config = config_of(
        folder, **dict.fromkeys(("arch", "mean", "std", "class_order", "checkpoint"))
    )
    few = {"epochs": 1, "batch_size": 256, "lr": 0.001, "precision": "fp32"}
    config = Config.model_validate(
        config.model_dump(exclude_defaults=True)
        | {
            "train_teacher": few | {"arch": "resnet8a"},
            "train_student": few | {"arch": "resnet8a", "distil": False},
        }
    )
    for execute, table in (
        (train_teacher.execute, "train_teacher"),
        (train_student.execute, "train_student"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            execute(config)
        assert "no better than a guess after" in caplog.text
        assert f"`{table}.batch_size` below 256" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cache_teacher.execute(config)  # its training has said it
    assert caplog.text == ""


def test_a_head_that_was_never_trained_is_a_warning(folder, tmp_path, caplog):
    state = network().state_dict()
    torch.save(state | {"8.weight": torch.zeros(10, 512)}, tmp_path / "fresh.pth")
    with caplog.at_level(logging.WARNING):
        cache_teacher.execute(config_of(folder, checkpoint=tmp_path / "fresh.pth"))
    assert "no better than a guess" in caplog.text
    assert "`cache_teacher.checkpoint`" in caplog.text
    assert len(caplog.records) == 1
