"""Classes and splits of an image folder, and messages for folders of another layout."""

import logging
import os
import unicodedata
from pathlib import Path

import pytest

from pipeline.data import sources
from pipeline.data.images.files import PixelRule
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from stages import prepare
from tests.support.image_folders import CLASSES, folder_config, save_folder, save_split, textures


def open_folder(root, *, train="train", test="test"):
    return sources.image_folder(root, train=train, test=test, rule=PixelRule())


def refusal_of(root, kind=ArtefactMismatch, **splits):
    with pytest.raises(kind) as caught:
        open_folder(root, **splits)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def root(tmp_path):
    return save_folder(tmp_path / "images", train=9, test=6)


@pytest.mark.parametrize(
    "name", [".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"]
)
@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_system_folders_are_no_classes_and_change_no_id(root, tmp_path, name, splits):
    clean = prepare.execute(folder_config(tmp_path / "clean", root))
    for split in splits:
        save_split(root / split / name, textures(3, seed=8))
        (root / split / name / "0.png").write_bytes(b"damaged")
    found = prepare.execute(folder_config(tmp_path / "work", root))
    assert found.record.class_names == list(CLASSES)
    assert found.record.id == clean.record.id
    assert found.record.request == clean.record.request
    assert found.record.left_out[0].count == len(splits)


def test_too_few_classes_name_what_was_left_out(tmp_path):
    save_split(tmp_path / "train" / ".cache", textures(3, seed=8))
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "train" / "a.zip").write_bytes(b"PK\x03\x04")
    message = refusal_of(tmp_path)
    assert "has 1 class folder (expected at least 2" in message
    assert "1 hidden or system folder (.cache)" in message
    assert "1 file that is not an image (.zip)" in message


def test_class_folders_below_path_name_the_settings_that_read_them(root):
    message = refusal_of(root / "train", ArtefactNotFound)
    assert '`prepare.train = ""`' in message
    assert '`prepare.test = ""`' in message
    assert "ant, bee, cat" in message
    source = open_folder(root / "train", train="", test=None)
    assert source.class_names == CLASSES
    assert source.test is None


def test_a_split_of_another_name_is_suggested(root):
    (root / "test").rename(root / "val")
    message = refusal_of(root, ArtefactNotFound)
    assert '`prepare.test = "val"`' in message
    assert '`prepare.test = ""`' in message
    (root / "train").rename(root / "training")
    message = refusal_of(root, ArtefactNotFound)
    assert '`prepare.train = "training"`' in message


def test_splits_are_not_taken_for_classes(root):
    message = refusal_of(root, train="", test=None)
    assert "test, train" in message
    assert "They look like splits" in message


def test_a_class_of_one_split_is_named_with_its_split(root):
    save_split(root / "train" / "dog", textures(3, seed=8))
    (root / "test" / "cat").rename(root / "test" / "cow")
    message = refusal_of(root)
    assert "cat, dog only in the training images" in message
    assert "cow only in the test images" in message


@pytest.mark.parametrize("form", [str.upper, lambda name: f"{name} "])
def test_classes_that_differ_in_form_only_are_explained(root, form):
    (root / "test" / "cat").rename(root / "test" / form("cat"))
    assert "differ in case, spaces or Unicode form" in refusal_of(root)


def test_unicode_forms_of_one_name_are_explained(root):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (root / split / "cat").rename(root / split / unicodedata.normalize(form, "Möwe"))
    assert "differ in case, spaces or Unicode form" in refusal_of(root)


def test_two_classes_that_may_be_one_are_reported(root, tmp_path, caplog):
    for split in ("train", "test"):
        save_split(root / split / "Ant", textures(2, seed=50 + len(split)))
        (root / split / "Ant" / "ant").rename(root / split / "Ant" / "sub")
    with caplog.at_level(logging.WARNING):
        dataset = prepare.execute(folder_config(tmp_path / "work", root))
    assert dataset.num_classes == 4
    assert "classes 'Ant' and 'ant' differ only in case" in caplog.text


@pytest.mark.parametrize("name", [b"two\nlines", b"latin-\xe9", b"bell\x07"])
def test_a_class_whose_name_is_not_text_is_rejected(root, name):
    for split in ("train", "test"):
        (root / split / "cat").rename(os.fsdecode(os.fsencode(root / split) + b"/" + name))
    assert "Rename it" in refusal_of(root)


def test_a_class_that_links_to_a_folder_above_is_none(root):
    (root / "train" / "all").symlink_to(root)
    source = open_folder(root)
    assert source.class_names == CLASSES
    assert len(source.train.labels) == 9
    assert [one.what for one in source.left_out] == ["link to a folder above it"]


def test_a_linked_class_is_read_through_its_link(root, tmp_path):
    before = open_folder(root)
    (root / "train" / "cat").rename(tmp_path / "cats")
    (root / "train" / "cat").symlink_to(tmp_path / "cats")
    after = open_folder(root)
    assert after.class_names == before.class_names
    assert after.train.listing() == before.train.listing()
    assert isinstance(after.train.listing()[0][0], str)
    assert Path(after.train.name(0)).exists()
