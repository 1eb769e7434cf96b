import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.publishing import _HOST
from pipeline.data import sources
from pipeline.errors import ArtefactExists, ArtefactMismatch, ArtefactNotFound, PipelineError
from stages import prepare
from stages.config.root import Config
from tests.support.image_folders import (
    CLASSES,
    folder_config,
    save_fashion_mnist,
    save_folder,
    save_split,
    textures,
)

DIGITS_ID = "d22914da67b9c502f71d7c72f7e20759d80520275e865496910875cca2690db4"
"""The same on any machine; if it changes, no stored cache fits its data set any more."""

FILES = (
    "dataset.json",
    "eval.beton",
    "eval.samples.safetensors",
    "train.beton",
    "train.samples.safetensors",
)


def refusal_of(config, kind, *parts):
    """Return the one line of a preparation that fails; nothing is left in the workspace."""
    existed = config.data_folder.exists()
    with pytest.raises(kind) as refusal:
        prepare.execute(config)
    message = str(refusal.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    left = [path.name for path in config.workspace.glob("*")]
    assert left == (["data"] if existed else [])
    return message


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def source_pixels(root, split):
    """(key, label, pixels) of every image of a split, read without the pipeline."""
    from pipeline.provenance import sample_key

    rows = []
    for path in sorted((root / split).glob("*/*")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        rows.append((sample_key(path.read_bytes()), CLASSES.index(path.parent.name), pixels))
    return sorted(rows, key=lambda row: row[:2])


def test_a_prepared_data_set_is_complete_and_in_canonical_order(prepared, image_root):
    assert sorted(times(prepared.folder)) == list(FILES)
    for split, beton in (("train", prepared.train), ("test", prepared.eval)):
        rows = source_pixels(image_root, split)
        assert [key for key, _, _ in rows] == [k.tobytes() for k in beton.samples.keys]
        assert [label for _, label, _ in rows] == beton.samples.labels.tolist()
        content = beton.path.read_bytes()
        offsets = [content.find(pixels.tobytes()) for _, _, pixels in rows]
        assert min(offsets) > 0
        assert offsets == sorted(offsets)
        counts = np.bincount(beton.samples.labels, minlength=3).tolist()
        assert beton.record.class_counts == counts
    assert prepared.record.class_names == list(CLASSES)
    assert prepared.record.image_size == (16, 16)


def test_mean_and_std_are_those_of_the_rows_trained_on(prepared, image_root):
    rows = source_pixels(image_root, "train")
    pixels = np.stack([rows[i][2] for i in prepared.training]) / 255.0
    np.testing.assert_allclose(prepared.record.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(prepared.record.std, pixels.std(axis=(0, 1, 2)), atol=1e-6)


def test_held_out_rows_are_of_every_class_and_not_trained_on(prepared):
    labels = prepared.train.samples.labels
    assert np.bincount(labels[prepared.held_out], minlength=3).tolist() == [2, 2, 2]
    assert sorted([*prepared.held_out, *prepared.training]) == list(range(74))


@pytest.fixture(scope="module")
def renamed_root(image_root, tmp_path_factory):
    """The same images under other names, in another order, some in folders below."""
    root = tmp_path_factory.mktemp("renamed") / "elsewhere"
    for split in ("train", "test"):
        for i, path in enumerate(sorted(image_root.glob(f"{split}/*/*"), reverse=True)):
            below = "below" if i % 2 else "."
            copy = root / split / path.parent.name / below / f"{i * 7 % 101:03d}.PNG"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return root


def test_the_same_images_under_other_names_give_the_same_bytes_and_id(
    prepared, renamed_root, tmp_path
):
    other = prepare.execute(folder_config(tmp_path, renamed_root))
    assert other.record.id == prepared.record.id
    assert other.record.train.fingerprint == prepared.record.train.fingerprint
    for name in FILES[1:]:
        assert (other.folder / name).read_bytes() == (prepared.folder / name).read_bytes()


def test_a_second_run_writes_and_decodes_nothing(image_root, tmp_path, monkeypatch, caplog):
    config = folder_config(tmp_path, image_root)
    first = prepare.execute(config)
    before = times(first.folder)
    monkeypatch.setattr(sources, "decode_file", None)
    with caplog.at_level(logging.INFO):
        second = prepare.execute(config)
    assert second.record == first.record
    assert times(first.folder) == before
    assert "exists, nothing to do" in caplog.text


def test_touched_files_and_other_names_are_accepted(image_root, renamed_root, tmp_path):
    root = shutil.copytree(image_root, tmp_path / "images")
    config = folder_config(tmp_path / "work", root)
    first = prepare.execute(config)
    before = times(first.folder)
    for path in root.glob("*/*/*"):
        os.utime(path, (1, 1))
    assert prepare.execute(config).record.id == first.record.id
    moved = folder_config(tmp_path / "work", renamed_root)
    assert prepare.execute(moved).record.id == first.record.id
    betons = {name: time for name, time in before.items() if name != "dataset.json"}
    assert times(first.folder).items() >= betons.items()


def test_touched_files_are_read_once_and_then_known(image_root, tmp_path):
    root = shutil.copytree(image_root, tmp_path / "images")
    config = folder_config(tmp_path / "work", root)
    prepare.execute(config)
    for path in root.glob("*/*/*"):
        os.utime(path, (1, 1))
    second = prepare.execute(config)
    known = times(second.folder)
    assert prepare.execute(config).record == second.record
    assert times(second.folder) == known


def changed_pixel(root):
    path = next(root.glob("train/ant/*"))
    Image.fromarray(textures(1, seed=99)[0]).save(path)


def removed_image(root):
    next(root.glob("train/ant/*")).unlink()


def other_label(root):
    path = next(root.glob("train/ant/*"))
    path.rename(root / "train" / "bee" / path.name)


def changed_test_image(root):
    Image.fromarray(textures(1, seed=99)[0]).save(next(root.glob("test/ant/*")))


@pytest.mark.parametrize("change", [changed_pixel, removed_image, other_label, changed_test_image])
def test_changed_images_are_rejected_and_the_old_data_set_stays(
    image_root, prepared, tmp_path, change
):
    root = shutil.copytree(image_root, tmp_path / "images")
    workspace = tmp_path / "work"
    shutil.copytree(prepared.folder, workspace / "data")
    change(root)
    config = folder_config(workspace, root)
    refusal_of(config, ArtefactExists, "other images or settings", prepared.record.id[:12])
    assert Dataset.open(config.data_folder).record == prepared.record


@pytest.mark.parametrize(
    "settings", [{"held_out_seed": 1}, {"held_out_fraction": 0.3}, {"resize": 8}]
)
def test_changed_settings_are_rejected(image_root, prepared, tmp_path, settings):
    shutil.copytree(prepared.folder, tmp_path / "data")
    config = folder_config(tmp_path, image_root, **settings)
    refusal_of(config, ArtefactExists, "Remove it, or set another `workspace`")


def test_a_folder_that_is_not_a_data_set_is_rejected_with_a_remedy(image_root, tmp_path):
    (tmp_path / "data").mkdir()
    config = folder_config(tmp_path, image_root)
    refusal_of(config, ArtefactExists, "is not a data set", "Remove it")


def test_a_damaged_beton_is_rejected_on_the_second_run(image_root, prepared, tmp_path):
    shutil.copytree(prepared.folder, tmp_path / "data")
    with (tmp_path / "data" / "train.beton").open("r+b") as file:
        file.seek(9000)
        file.write(b"\xff\x00\xff")
    refusal_of(folder_config(tmp_path, image_root), ArtefactMismatch, "train.beton", "damaged")


def test_a_missing_folder_is_rejected(tmp_path):
    config = folder_config(tmp_path / "work", tmp_path / "nowhere")
    refusal_of(config, ArtefactNotFound, "nowhere/train is not a folder", "`prepare.path`")


@pytest.fixture
def small_root(tmp_path):
    """A folder of a few images that a test may change, away from its workspace."""
    return save_folder(tmp_path / "images", train=12, test=6)


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unreadable_image_stops_the_run_and_is_named(small_root, tmp_path, content, split):
    path = small_root / split / "bee" / "001.png"
    path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    config = folder_config(tmp_path / "work", small_root)
    refusal_of(config, ArtefactMismatch, str(path), "not a readable image", "--skip-corrupt")


def test_skip_corrupt_leaves_unreadable_images_out_and_lists_them(small_root, tmp_path, caplog):
    paths = [small_root / "train" / "bee" / "001.png", small_root / "test" / "cat" / "005.png"]
    for path in paths:
        path.write_bytes(b"")
    dataset = prepare.execute(folder_config(tmp_path / "work", small_root, skip_corrupt=True))
    assert (dataset.train.num_samples, dataset.eval.num_samples) == (11, 5)
    assert dataset.record.skipped == sorted(str(path) for path in paths)
    assert "left out 2 unreadable files" in caplog.text
    for path in paths:
        path.unlink()
    clean = prepare.execute(folder_config(tmp_path / "clean", small_root))
    assert clean.record.id == dataset.record.id
    assert clean.record.train == dataset.record.train


def test_skipping_a_whole_class_is_rejected(small_root, tmp_path):
    for path in (small_root / "test" / "cat").iterdir():
        path.write_bytes(b"")
    config = folder_config(tmp_path / "work", small_root, skip_corrupt=True)
    refusal_of(config, ArtefactMismatch, "class cat has 0 test images", "Add images")


def test_skipping_a_whole_split_is_rejected(small_root, tmp_path):
    for path in small_root.glob("train/*/*"):
        path.write_bytes(b"")
    config = folder_config(tmp_path / "work", small_root, skip_corrupt=True)
    refusal_of(config, ArtefactMismatch, "no readable image", "`prepare.path`")


def test_a_class_without_a_training_image_is_rejected(tmp_path):
    root = save_folder(tmp_path / "images", train=4, test=3)
    config = folder_config(tmp_path / "work", root)
    refusal_of(config, ArtefactMismatch, "class bee has 0 training images", "expected at least 1")


def test_images_of_two_sizes_are_rejected_with_both_names_and_a_remedy(small_root, tmp_path):
    odd = small_root / "train" / "cat" / "odd.png"
    Image.fromarray(textures(1, seed=5, size=20)[0]).save(odd)
    config = folder_config(tmp_path / "work", small_root)
    message = refusal_of(config, ArtefactMismatch, "20 x 20", "16 x 16", "`prepare.resize`")
    assert "odd.png" in message
    assert "000.png" in message
    resized = folder_config(tmp_path / "work", small_root, resize=8)
    assert prepare.execute(resized).record.image_size == (8, 8)


def test_test_images_of_another_size_are_rejected(tmp_path):
    save_split(tmp_path / "images" / "train", textures(9, seed=1))
    save_split(tmp_path / "images" / "test", textures(3, seed=2, size=20))
    config = folder_config(tmp_path / "work", tmp_path / "images")
    refusal_of(config, ArtefactMismatch, "test images are 20 x 20", "16 x 16", "`prepare.resize`")


def test_images_too_large_for_a_beton_are_rejected(tmp_path):
    for i, name in enumerate(CLASSES):
        path = tmp_path / "images" / "train" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (2000, 2000), (i, 0, 0)).save(path)
    config = folder_config(tmp_path / "work", tmp_path / "images", test="")
    refusal_of(config, ArtefactMismatch, "2000 x 2000", "1672 x 1672", "`prepare.resize`")


def test_a_source_that_changes_between_the_readings_is_rejected(small_root, tmp_path, monkeypatch):
    real = prepare.betons.write_beton

    def write_beton(*arguments, **settings):
        changed_pixel(small_root)
        real(*arguments, **settings)

    monkeypatch.setattr(prepare.betons, "write_beton", write_beton)
    config = folder_config(tmp_path / "work", small_root)
    refusal_of(config, ArtefactMismatch, "changed while it was being read", "train/ant/")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing_and_the_next_one_succeeds(
    small_root, tmp_path, monkeypatch, failure
):
    real = prepare.betons.write_beton

    def write_beton(path, samples, *, num_samples):
        real(path, samples, num_samples=num_samples)
        if path.name == "eval.beton":
            raise failure

    monkeypatch.setattr(prepare.betons, "write_beton", write_beton)
    config = folder_config(tmp_path / "work", small_root)
    with pytest.raises((KeyboardInterrupt, PipelineError)):
        prepare.execute(config)
    assert not list(config.workspace.iterdir())
    monkeypatch.undo()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = config.workspace / f"data.{_HOST}-{killed.pid}-0.partial"
    left.mkdir()
    (left / "train.beton").write_bytes(b"half")
    prepare.execute(config)
    assert [path.name for path in config.workspace.iterdir()] == ["data"]


def test_jpegs_are_prepared_as_pillow_decodes_them(tmp_path):
    root = save_folder(tmp_path / "images", train=12, test=3, suffix=".jpg")
    dataset = prepare.execute(folder_config(tmp_path / "work", root))
    content = dataset.train.path.read_bytes()
    for _, _, pixels in source_pixels(root, "train"):
        assert pixels.tobytes() in content
    assert dataset.record.decoder.startswith("pillow ")


def test_equal_images_are_all_kept_and_fall_on_the_same_side(tmp_path):
    images = textures(20, seed=1)
    save_split(tmp_path / "images" / "train", [image for image in images for _ in range(3)])
    save_split(tmp_path / "images" / "test", images[:3])
    config = folder_config(tmp_path / "work", tmp_path / "images", duplicates="allow")
    dataset = prepare.execute(config)
    assert dataset.train.num_samples == 60
    held_out = {key.tobytes() for key in dataset.train.samples.keys[dataset.held_out]}
    assert len(held_out) == 2  # of each class 2 of 20, and every image is in every class


def test_a_source_without_a_test_split_is_divided_by_content(small_root, tmp_path):
    config = folder_config(tmp_path / "work", small_root, test="", test_fraction=0.25)
    dataset = prepare.execute(config)
    assert (dataset.train.num_samples, dataset.eval.num_samples) == (9, 3)
    assert np.bincount(dataset.eval.samples.labels).tolist() == [1, 1, 1]
    keys = {k.tobytes() for beton in (dataset.train, dataset.eval) for k in beton.samples.keys}
    assert len(keys) == 12


def test_digits_are_prepared_without_any_setting(tmp_path):
    dataset = prepare.execute(Config.model_validate({"workspace": tmp_path}))
    assert dataset.train.num_samples + dataset.eval.num_samples == 1797
    assert dataset.record.image_size == (8, 8)
    assert dataset.record.class_names == list("0123456789")
    record = json.loads((dataset.folder / "dataset.json").read_text())
    assert (record["format"], record["version"]) == ("heartcut.dataset", 3)
    assert record["source"] == "scikit-learn digits"
    assert dataset.record.id == DIGITS_ID


def test_digits_of_another_size_are_another_data_set_of_the_same_samples(tmp_path):
    plain, resized = (
        Config.model_validate({"workspace": tmp_path / str(size), "prepare": {"resize": size}})
        for size in (None, 12)
    )
    first, second = prepare.execute(plain), prepare.execute(resized)
    assert first.record.id == DIGITS_ID != second.record.id
    assert second.record.image_size == (12, 12)
    assert np.array_equal(first.train.samples.keys, second.train.samples.keys)
    assert not (first.train.samples.pixels == second.train.samples.pixels).all(axis=1).any()
    known = times(second.folder)
    assert prepare.execute(resized).record == second.record
    assert times(second.folder) == known
    other = resized.model_copy(update={"prepare": plain.prepare})
    refusal_of(other, ArtefactExists, "other images or settings")


def test_a_workspace_where_data_is_a_file_is_rejected(image_root, tmp_path):
    (tmp_path / "data").write_text("")
    config = folder_config(tmp_path, image_root)
    refusal_of(config, ArtefactExists, "is not a data set", "Remove it")


def torchvision_config(tmp_path, name):
    settings = {"source": "torchvision", "name": name, "path": tmp_path / "files"}
    return Config.model_validate({"workspace": tmp_path / "work", "prepare": settings})


def test_torchvisions_files_are_prepared_and_a_change_of_theirs_is_rejected(tmp_path):
    save_fashion_mnist(tmp_path / "files")
    config = torchvision_config(tmp_path, "FashionMNIST")
    dataset = prepare.execute(config)
    assert (dataset.train.num_samples, dataset.eval.num_samples) == (300, 100)
    assert dataset.record.image_size == (28, 28)
    assert prepare.execute(config).record == dataset.record
    path = tmp_path / "files" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\x77\x78\x79")
    refusal_of(config, ArtefactExists, "other images or settings")


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST"])
def test_torchvisions_missing_files_are_reported_with_a_remedy(tmp_path, name):
    config = torchvision_config(tmp_path, name)
    refusal_of(config, ArtefactNotFound, name, str(tmp_path / "files"), "prepare.download")
