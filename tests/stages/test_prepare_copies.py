"""Images that stand twice: in training and test, under two labels, or in one split."""

import logging
import shutil

import pytest
from PIL import Image

from pipeline.artefacts.dataset import Dataset
from pipeline.data.images import findings
from pipeline.errors import ArtefactMismatch, ConfigError
from stages import prepare
from stages.config.file import config_from_tree
from stages.config.root import Config
from tests.support.image_folders import folder_config, save_folder, save_split, textures


@pytest.fixture
def root(tmp_path):
    return save_folder(tmp_path / "images", train=24, test=9)


def counts(dataset: Dataset) -> dict[str, int]:
    return {one.what: one.count for one in dataset.record.notes}


def same_bytes(root):
    for i in (0, 3, 6, 9):
        shutil.copy(root / "train" / "ant" / f"{i:03d}.png", root / "test" / "ant" / f"{i}-too.png")


def same_pixels(root):
    for i in (0, 3, 6, 9):
        with Image.open(root / "train" / "ant" / f"{i:03d}.png") as image:
            image.save(root / "test" / "bee" / f"{i}-too.bmp")


@pytest.mark.parametrize("copy", [same_bytes, same_pixels])
def test_training_images_that_are_test_images_are_rejected_dropped_or_allowed(
    root, tmp_path, copy, caplog
):
    copy(root)
    config = folder_config(tmp_path / "work", root)
    with pytest.raises(ArtefactMismatch) as caught:
        prepare.execute(config)
    message = str(caught.value)
    assert "\n" not in message
    assert "4 test images are training images too" in message
    assert message.count(" = ") >= 3
    assert "too." in message
    assert message.count(str(root / "train" / "ant")) == 3
    assert '`prepare.duplicates = "drop"`' in message
    assert not list(config.workspace.glob("*"))

    allowed = prepare.execute(folder_config(tmp_path / "allowed", root, duplicates="allow"))
    assert (allowed.train.num_samples, allowed.eval.num_samples) == (24, 13)
    assert counts(allowed) == {findings.SHARED: 4}
    with caplog.at_level(logging.WARNING):
        dropped = prepare.execute(folder_config(tmp_path / "dropped", root, duplicates="drop"))
    assert (dropped.train.num_samples, dropped.eval.num_samples) == (20, 13)
    assert counts(dropped) == {findings.DROPPED: 4}
    assert "4 training images that are test images too, and were left out" in caplog.text
    pixels = {row.tobytes() for row in dropped.train.samples.pixels}
    assert not pixels & {row.tobytes() for row in dropped.eval.samples.pixels}


def test_a_setting_for_duplicates_changes_no_id_where_there_are_none(root, tmp_path):
    one, other = (
        prepare.execute(folder_config(tmp_path / name, root, duplicates=name))
        for name in ("reject", "drop")
    )
    assert one.record.id == other.record.id
    assert one.record.notes == other.record.notes == ()


def test_a_drawn_test_split_is_held_to_the_same_rule(tmp_path):
    root = tmp_path / "images"
    images = textures(30, seed=1)
    save_split(root / "train", images)
    for i, image in enumerate(images):  # the same pixels in other bytes fall on any side
        Image.fromarray(image).save(root / "train" / ("ant", "bee", "cat")[i % 3] / f"{i}.bmp")
    with pytest.raises(ArtefactMismatch, match="test images are training images too"):
        prepare.execute(folder_config(tmp_path / "work", root, test=""))
    dropped = prepare.execute(folder_config(tmp_path / "drop", root, test="", duplicates="drop"))
    assert dropped.record.notes[0].what == findings.DROPPED
    pixels = {row.tobytes() for row in dropped.train.samples.pixels}
    assert not pixels & {row.tobytes() for row in dropped.eval.samples.pixels}


def test_copies_within_a_split_are_counted_with_their_names(root, tmp_path, caplog):
    shutil.copy(root / "train" / "ant" / "000.png", root / "train" / "ant" / "again.png")
    shutil.copy(root / "train" / "ant" / "003.png", root / "train" / "bee" / "as-bee.png")
    shutil.copy(root / "test" / "cat" / "002.png", root / "test" / "cat" / "again.png")
    with caplog.at_level(logging.WARNING):
        dataset = prepare.execute(folder_config(tmp_path / "work", root))
    found = counts(dataset)
    assert found.pop(findings.HELD_OUT_COPY, 0) <= 2  # the draw may part them
    assert found == {
        findings.TWO_LABELS: 2,
        findings.COPY_IN_TRAINING: 2,
        findings.COPY_IN_TEST: 1,
    }
    assert "2 training images with copies of other classes" in caplog.text
    (two_labels,) = (one for one in dataset.record.notes if one.what == findings.TWO_LABELS)
    for pair in two_labels.examples:
        names = pair.split(" = ")
        assert {name.rpartition("/")[2] for name in names} == {"003.png", "as-bee.png"}


def test_held_out_samples_with_a_copy_that_is_trained_on_are_counted(tmp_path):
    images = textures(10, seed=1)
    save_split(tmp_path / "images" / "train", [image for image in images for _ in range(3)])
    save_split(tmp_path / "images" / "test", textures(3, seed=2))
    dataset = prepare.execute(folder_config(tmp_path / "work", tmp_path / "images"))
    pixels = dataset.train.samples.pixels
    trained = {pixels[row].tobytes() for row in dataset.training}
    expected = sum(pixels[row].tobytes() in trained for row in dataset.held_out)
    assert counts(dataset).get(findings.HELD_OUT_COPY, 0) == expected
    assert counts(dataset)[findings.TWO_LABELS] == 30


def test_published_splits_are_reported_and_used_as_they_are(tmp_path, caplog):
    from tests.support.image_folders import save_fashion_mnist, write_idx

    grey, labels = save_fashion_mnist(tmp_path / "files")
    grey[300:305] = grey[0:5]
    write_idx(tmp_path / "files" / "FashionMNIST" / "raw", "t10k", grey[300:], labels[300:])
    settings = {"source": "torchvision", "name": "FashionMNIST", "path": tmp_path / "files"}
    config = Config.model_validate({"workspace": tmp_path / "work", "prepare": settings})
    with caplog.at_level(logging.WARNING):
        dataset = prepare.execute(config)
    assert (dataset.train.num_samples, dataset.eval.num_samples) == (300, 100)
    assert counts(dataset)[findings.SHARED] >= 5
    assert "FashionMNIST test sample" in caplog.text
    with pytest.raises(ConfigError, match="duplicates"):
        config_from_tree(
            {"prepare": {**settings, "path": "files", "duplicates": "drop"}}, origin="c.toml"
        )


def test_dropping_the_images_of_a_whole_class_is_rejected(root, tmp_path):
    for path in (root / "train" / "cat").iterdir():
        shutil.copy(path, root / "test" / "cat" / f"too-{path.name}")
    config = folder_config(tmp_path / "work", root, duplicates="drop")
    with pytest.raises(ArtefactMismatch, match=r"class cat has 0 training images after .* dropped"):
        prepare.execute(config)


def test_a_file_that_vanishes_between_the_readings_is_named(root, tmp_path, monkeypatch):
    real = prepare.betons.write_beton

    def write_beton(*arguments, **settings):
        (root / "train" / "ant" / "000.png").unlink(missing_ok=True)
        real(*arguments, **settings)

    monkeypatch.setattr(prepare.betons, "write_beton", write_beton)
    config = folder_config(tmp_path / "work", root, skip_corrupt=True)
    with pytest.raises(ArtefactMismatch, match=r"000.png changed while it was being read"):
        prepare.execute(config)
    assert not list(config.workspace.glob("*"))
