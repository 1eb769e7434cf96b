"""`make demo`: its images are two disjoint teams', and its commands work on them in order."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from scripts import demo_images
from scripts.demo_images import COUNTS, NOISE, OTHER_TEST, OTHER_TRAIN, TEST, TRAIN
from stages.config.file import load_config
from tests.support.cases import looped
from tests.support.commands import ROOT, heartcut
from tests.support.workspaces import snapshot

NUMBERS = {OTHER_TRAIN: 800, OTHER_TEST: 150, TRAIN: 100, TEST: 747}
DEMO, TEACHER = "configs/demo.toml", "configs/demo-teacher.toml"
SHORT = ("--set", "train_student.epochs=1", "--set", "compare.seeds=[0]")
SHORT_TEACHER = ("--set", "train_teacher.epochs=1")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The demo's files by their paths."""
    return demo_images.demo_files()


def folder_of(path: str) -> str:
    """The part of the demo that a file belongs to."""
    return path.rsplit("/", 2)[0]


def test_every_digit_is_in_one_folder(files):
    numbers = [int(Path(path).stem) for path in files]
    assert sorted(numbers) == list(range(1797))
    assert Counter(map(folder_of, files)) == NUMBERS
    assert {**COUNTS, TEST: 747} == NUMBERS


def test_no_two_files_have_the_same_content(files):
    assert len({hashlib.sha256(file).digest() for file in files.values()}) == 1797


def test_every_folder_has_every_class_as_often_as_all_digits(files):
    labels = load_digits().target
    of_all = np.bincount(labels) / len(labels)
    for name, number in NUMBERS.items():
        own = [path.rsplit("/", 2)[1:] for path in files if folder_of(path) == name]
        assert all(int(label) == labels[int(Path(file).stem)] for label, file in own)
        counts = np.bincount([int(label) for label, _ in own], minlength=10)
        assert np.abs(counts - number * of_all).max() < 1.5


def test_the_same_seed_writes_the_same_files_and_another_one_other_files(files):
    assert demo_images.demo_files() == files
    assert demo_images.demo_files(seed=1).keys() != files.keys()
    digest = hashlib.sha256(b"".join(files[path] for path in sorted(files)))
    assert digest.hexdigest()[:12] == "e9d8de4377af", (
        "docs/results/demo has results of other images"
    )


def test_only_the_images_of_the_worse_scanner_are_noisy(files, tmp_path):
    demo_images.write_missing(tmp_path, files)
    clean = load_digits().images * (255 / 16)
    noise: dict[str, list[float]] = {name: [] for name in NUMBERS}
    for path in files:
        with Image.open(tmp_path / path) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            pixels = np.asarray(image, dtype=np.float64)
        wanted = clean[int(Path(path).stem)]
        grey = (wanted > 100) & (wanted < 155)  # where no noise is clipped
        noise[folder_of(path)] += list((pixels - wanted)[grey])
    assert np.abs(noise[OTHER_TRAIN] + noise[OTHER_TEST]).max() <= 0.5
    for name in (TRAIN, TEST):
        assert np.std(noise[name]) == pytest.approx(NOISE, rel=0.1)
        assert np.mean(noise[name]) == pytest.approx(0.0, abs=3.0)


def test_a_second_run_writes_nothing_and_other_files_are_rejected(files, tmp_path):
    demo_images.write_missing(tmp_path, files)
    before = snapshot(tmp_path)
    demo_images.write_missing(tmp_path, files)
    assert snapshot(tmp_path) == before
    with pytest.raises(SystemExit, match=rf"images/.*\.png .*Remove {tmp_path} and run"):
        demo_images.write_missing(tmp_path, demo_images.demo_files(seed=1))
    missing, changed = sorted(files)[:2]
    (tmp_path / missing).unlink()
    demo_images.write_missing(tmp_path, files)
    assert (tmp_path / missing).read_bytes() == files[missing]
    (tmp_path / changed).write_bytes(b"another")
    with pytest.raises(SystemExit, match=changed):
        demo_images.write_missing(tmp_path, files)


@pytest.fixture(scope="module")
def demo(files, tmp_path_factory) -> Path:
    """A folder in which the other team's part of the demo has run, with one epoch."""
    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "configs", root / "configs")
    demo_images.write_missing(root / "work" / "demo", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert heartcut("prepare", TEACHER).code == 0
        trained = heartcut("train-teacher", TEACHER, *SHORT_TEACHER)
        assert trained.code == 0
        run = Path(trained.out.strip())  # as the Makefile does
        shutil.copy(run / "model.safetensors", "work/demo/teacher.safetensors")
    return root


@pytest.mark.slow
def test_a_shortened_demo_ends_with_a_table_and_a_report(demo, monkeypatch):
    monkeypatch.chdir(demo)
    compared = heartcut("compare", DEMO, *SHORT)
    assert compared.code == 0, compared.err
    names = [line.split("  ")[0] for line in compared.out.split("\n\n")[0].splitlines()]
    assert names[-3:] == ["no teacher", "KD", "label revision"]
    reported = heartcut("report", DEMO)
    assert reported.code == 0, reported.err
    report = Path("work/demo/report.html")
    assert str(report) in reported.out
    assert "label revision" in report.read_text()
    runs = comparison.read(Path("work/demo"))
    trained = {Run.open(own[0]).result.num_training_samples for own in runs.values()}
    assert trained == {90}, "100 images, less one of each class that is held out"


def test_the_configuration_names_the_normalisation_of_the_other_team(demo):
    config = load_config(demo / DEMO).cache_teacher
    record = Dataset.open(demo / "work" / "demo" / "other-team" / "data").record
    assert config.mean == tuple(round(number, 4) for number in record.mean)
    assert config.std == tuple(round(number, 4) for number in record.std)
    assert config.trained_on_held_out is False


@looped("key", ["arch", "mean", "std"])
def test_the_checkpoint_is_described_as_any_other(key):
    assert key in load_config(ROOT / DEMO).cache_teacher.model_fields_set
