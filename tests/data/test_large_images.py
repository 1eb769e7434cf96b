"""Images of several sizes, stored as JPEGs and as pixels, from files to batches and networks."""

import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artefacts.dataset import Dataset
from pipeline.data import image_kernels
from pipeline.data.betons import Jpeg, decode
from pipeline.data.loaders import BatchLoader
from pipeline.data.resized_crops import ResizedCropSpec, crop_boxes
from pipeline.data.views import ALL, ViewSpec
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.provenance import pixel_key, sample_key
from stages import cache_teacher, prepare, select, train_student, train_teacher
from stages.config.file import load_config, with_overrides
from stages.identities import training_settings
from tests.support.image_folders import CLASSES, cmyk_jpeg, folder_config, photographs
from tests.support.view_oracles import resized_by_pillow
from tests.support.workspaces import edited

SPEC = ResizedCropSpec(size=24, count=3, seed=5)
FRESH = replace(SPEC, count=ALL)
RRC = {"kind": "rrc-flip", "size": 24, "count": 3, "seed": 5}


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory):
    """40 training and 9 test images of 40 to 90 pixels: JPEGs of all kinds, and a few PNGs."""
    root = tmp_path_factory.mktemp("photos")
    for split, count, seed in (("train", 40, 1), ("test", 9, 2)):
        for i, pixels in enumerate(photographs(count, seed=seed, sides=(40, 40), spread=50)):
            path = root / split / CLASSES[i % 3] / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            if i == 3:
                path.write_bytes(cmyk_jpeg(pixels))
            elif i == 4:
                image.convert("L").save(path)
            elif i == 5:
                image.save(path, progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
            elif i % 7 == 6:
                image.save(path.with_suffix(".png"))
            else:
                image.save(path, quality=92)
    return root


def photo_config(workspace, root, **settings):
    config = folder_config(workspace, root, **settings)
    return config.model_copy(update={"views": type(config.views)(**RRC)})


def new_data(tmp_path_factory, root, **settings):
    return prepare.execute(photo_config(tmp_path_factory.mktemp("data"), root, **settings))


@pytest.fixture(scope="module")
def jpegs(photo_root, tmp_path_factory):
    return new_data(tmp_path_factory, photo_root, store="jpeg")


@pytest.fixture(scope="module")
def mixed(photo_root, tmp_path_factory):
    return new_data(tmp_path_factory, photo_root, store="mixed", raw_pixels=4000)


@pytest.fixture(scope="module")
def raws(photo_root, tmp_path_factory):
    return new_data(tmp_path_factory, photo_root)


@pytest.fixture(scope="module")
def files(photo_root):
    """Content of every training file by its key."""
    paths = photo_root.glob("train/*/*")
    return {sample_key(path.read_bytes()): path.read_bytes() for path in paths}


def stored_pixels(content, image):
    """Pixels that a beton of JPEGs must show of a file."""
    plain = content[:2] == b"\xff\xd8" and image.mode != "CMYK"
    if not plain:
        return None
    return decode(Jpeg(content=content, height=image.height, width=image.width))


def shown(batches):
    """Pixels of every sample by index, (S, S, 3) each."""
    found = {}
    for batch in batches:
        images = batch.images.permute(0, 2, 3, 1).numpy().copy()
        found |= dict(zip(batch.indices.tolist(), images, strict=True))
    return found


def equal(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[index], other[index]) for index in one)


def test_jpeg_files_are_stored_byte_for_byte_and_others_are_made(jpegs, files, photo_root):
    content = jpegs.train.path.read_bytes()
    kept = [file in content for file in files.values()]
    pngs = len(list(photo_root.glob("train/*/*.png")))
    assert len(files) - sum(kept) == pngs + 1  # the CMYK one
    assert jpegs.record.num_jpegs == 49
    assert jpegs.record.image_size is None


def test_the_hash_of_a_sample_is_of_what_the_loader_decodes(jpegs, files):

    checked = 0
    for key, digest in zip(jpegs.train.samples.keys, jpegs.train.samples.pixels, strict=True):
        with Image.open(BytesIO(files[key.tobytes()])) as image:
            pixels = stored_pixels(files[key.tobytes()], image)
        if pixels is not None:
            assert pixel_key(pixels) == digest.tobytes()
            checked += 1
    assert checked > 30


def test_sizes_and_statistics_are_those_of_all_images(raws, files):

    images = [np.asarray(Image.open(BytesIO(f)).convert("RGB")) for f in files.values()]
    assert raws.record.num_jpegs == 0
    assert raws.record.heights[0] <= min(image.shape[0] for image in images)
    by_key = dict(zip(files, images, strict=True))
    rows = [by_key[raws.train.samples.keys[i].tobytes()] for i in raws.training]
    pixels = np.concatenate([image.reshape(-1, 3) for image in rows]) / 255
    np.testing.assert_allclose(raws.record.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(raws.record.std, pixels.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("store", ["raws", "jpegs", "mixed"])
def test_batches_show_the_specified_crops_of_the_stored_images(store, request):
    """Every pixel of every view from the file of the beton alone, by Pillow's resize."""
    beton = request.getfixturevalue(store).train
    loader = BatchLoader(beton, batch_size=16, view_spec=SPEC, order="random", workers=2)
    full = whole_images(beton)
    sizes = np.array([full[i].shape[:2] for i in range(beton.num_samples)])
    for view in (0, 2):
        boxes = crop_boxes(SPEC, beton.samples.keys, np.int64(view), sizes=sizes)
        expected = {i: resized_by_pillow(full[i], boxes[i], 24) for i in full}
        assert equal(shown(loader.view(view)), expected)


def whole_images(beton):
    """The stored images, checked against the hashes of the samples file."""
    from ffcv.reader import Reader

    reader = Reader(str(beton.path))
    content, sizes = beton.path.read_bytes(), dict(reader.alloc_table[["ptr", "size"]].tolist())
    images = {}
    for i, row in enumerate(reader.metadata["f0"]):
        start, height, width = int(row["data_ptr"]), int(row["height"]), int(row["width"])
        part = content[start : start + sizes[start]]
        if row["mode"] == 0:
            images[i] = decode(Jpeg(content=part, height=height, width=width))
        else:
            images[i] = np.frombuffer(part, np.uint8).reshape(height, width, 3)
        assert pixel_key(images[i]) == beton.samples.pixels[i].tobytes()
    return images


@pytest.mark.parametrize("spec", [SPEC, FRESH])
def test_pixels_do_not_depend_on_order_batch_size_or_threads(mixed, spec):
    settings = [
        {"batch_size": 40, "workers": 1},
        {"batch_size": 7, "workers": 2, "order": "random"},
        {"batch_size": 1, "workers": 2},
    ]
    loaders = [BatchLoader(mixed.train, view_spec=spec, seed=9, **each) for each in settings]
    for epoch in range(2):
        found = [shown(loader.epoch(epoch)) for loader in loaders]
        assert equal(found[0], found[1])
        assert equal(found[0], found[2])
    assert not equal(found[0], shown(loaders[0].epoch(5 if spec is FRESH else 2)))


def test_the_student_sees_the_teacher_s_pixels_in_every_view(jpegs):
    """The replay check: views in sequence, as they are cached, and epochs in random order."""
    teacher = BatchLoader(jpegs.train, batch_size=13, view_spec=SPEC, workers=1)
    student = BatchLoader(
        jpegs.train, batch_size=8, view_spec=SPEC, order="random", seed=3, workers=2
    )
    for epoch in range(4):
        seen = shown(teacher.view(1 + epoch % 3))
        assert equal(seen, shown(student.epoch(epoch)))


def test_another_view_side_or_loader_compiles_nothing(jpegs):
    first = BatchLoader(jpegs.train, batch_size=8, view_spec=SPEC)
    shown(first.epoch(0))
    compiled = len(image_kernels.show_views.signatures)
    other = BatchLoader(jpegs.train, batch_size=5, view_spec=replace(SPEC, size=17, seed=1))
    shown(first.epoch(1))
    shown(first.epoch(1, size=16))
    shown(other.view(0))
    assert len(image_kernels.show_views.signatures) == compiled


def test_another_side_shows_the_same_crops(jpegs):
    loader = BatchLoader(jpegs.train, batch_size=8, view_spec=SPEC)
    small = shown(loader.epoch(1, size=16))
    exact = BatchLoader(jpegs.train, batch_size=8, view_spec=replace(SPEC, size=16))
    assert equal(small, shown(exact.epoch(1)))
    assert next(iter(shown(loader.view(0)).values())).shape == (24, 24, 3)


def test_a_damaged_jpeg_stops_the_loop_and_is_named(jpegs, tmp_path):
    folder = shutil.copytree(jpegs.folder, tmp_path / "data")
    path = folder / "train.beton"
    content = bytearray(path.read_bytes())
    start = content.rindex(b"\xff\xd8\xff")
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ArtefactMismatch, match=r"\.beton"):
        Dataset.open(folder)
    beton = replace(jpegs.train, path=path)
    loader = BatchLoader(beton, batch_size=8, view_spec=SPEC)
    with pytest.raises(ArtefactMismatch, match=r"JPEG of sample \d+"):
        shown(loader.view(0))


def test_small_raw_images_of_one_size_have_random_resized_crops_too(prepared):
    loader = BatchLoader(prepared.train, batch_size=32, view_spec=replace(SPEC, size=16))
    seen = shown(loader.epoch(0))
    assert len(seen) == 74
    assert next(iter(seen.values())).shape == (16, 16, 3)


def test_crops_of_the_padded_image_are_rejected_for_several_sizes(jpegs, photo_root, tmp_path):
    message = r"images of \d+ to \d+ x \d+ to \d+ pixels .*rrc-flip.*prepare.resize"
    with pytest.raises(ArtefactMismatch, match=message):
        BatchLoader(jpegs.train, batch_size=8, view_spec=ViewSpec(padding=4, flip=True, count=2))
    config = folder_config(tmp_path, photo_root)
    with pytest.raises(ArtefactMismatch, match=r"`prepare.resize` .*views.kind = .rrc-flip"):
        prepare.execute(config)
    shutil.copytree(jpegs.folder, config.data_folder)
    with pytest.raises(ArtefactMismatch, match=message) as caught:
        train_teacher.execute(config)
    assert "\n" not in str(caught.value)


def test_larger_images_are_shrunk_and_others_left(photo_root, files, tmp_path):
    dataset = prepare.execute(photo_config(tmp_path, photo_root, store="jpeg", max_side=64))
    assert max(dataset.record.heights + dataset.record.widths) == 64
    content = dataset.train.path.read_bytes()

    for file in files.values():
        with Image.open(BytesIO(file)) as image:
            is_kept = max(image.size) <= 64 and image.format == "JPEG" and image.mode != "CMYK"
        assert (file in content) == is_kept


def test_a_dataset_of_version_2_is_read_as_before(prepared, tmp_path):
    folder = shutil.copytree(prepared.folder, tmp_path / "data")
    path = folder / "dataset.json"
    with edited(path) as record:
        for name in ("heights", "widths", "num_jpegs"):
            record.pop(name)
        record |= {"version": 2, "image_size": [16, 16]}
    assert Dataset.open(folder).record == prepared.record


def stage_toml(path, root, workspace):
    path.write_text(f"""
workspace = "{workspace}"
[prepare]
source = "folder"
path = "{root}"
store = "mixed"
raw_pixels = 4000
held_out_fraction = 0.2
[views]
kind = "rrc-flip"
size = 16
count = 1
[train_teacher]
arch = "resnet8"
epochs = 1
batch_size = 16
[cache_teacher]
batch_size = 16
[select]
revision = "none"
strategy = "all"
[train_student]
arch = "resnet8"
epochs = 2
batch_size = 16
resolutions = [[1, 12], [2, 16]]
""")
    return load_config(path)


def test_all_stages_run_on_images_of_several_sizes(photo_root, tmp_path, monkeypatch):
    """And the student is trained at the side of each epoch."""
    seen = []
    batches = BatchLoader._batches

    def watched(*arguments, **settings):
        for batch in batches(*arguments, **settings):
            seen.append(batch.images.shape[2:])
            yield batch

    config = stage_toml(tmp_path / "large.toml", photo_root, tmp_path / "work")
    prepare.execute(config)
    train_teacher.execute(config)
    cache = cache_teacher.execute(config)
    assert cache.shape.num_views == 2
    assert cache.manifest.identity.views["kind"] == "rrc-flip"
    select.execute(config)
    monkeypatch.setattr(BatchLoader, "_batches", watched)
    run = train_student.execute(config)
    sides = [height for height, width in seen if height == width]
    per_epoch = -(-run.result.num_training_samples // 16)
    assert sides == [12] * per_epoch + [16] + [16] * per_epoch + [16] * 2  # held out, test
    same = with_overrides(config, ["train_student.resolutions=[]"])
    assert (
        training_settings(same.train_student).keys()
        < training_settings(config.train_student).keys()
    )


def test_resolutions_are_shown_in_their_epochs():
    settings = {"epochs": 5, "resolutions": [[1, 16], [3, 24]]}
    config = type(load_config_of({})).model_validate({"views": RRC, "train_student": settings})
    sides = [config.train_student.side_in(epoch) for epoch in range(5)]
    assert sides == [16, 16, 24, 24, 24]
    assert load_config_of({}).train_student.side_in(0) is None


def load_config_of(settings):
    from stages.config.root import Config

    return Config.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": {"kind": "rrc-flip"}}, "size must be set"),
        ({"views": {**RRC, "count": "all"}}, "count must be a number"),
        ({"views": {**RRC, "padding": 4}}, "padding has no effect with kind"),
        ({"views": {"size": 32}}, "size has no effect with kind"),
        ({"views": {**RRC, "scale": [0.5, 0.1]}}, "scale must be the smaller"),
        ({"prepare": {"quality": 80}}, "quality has no effect with store = 'raw'"),
        ({"prepare": {"store": "jpeg", "raw_pixels": 9}}, "raw_pixels has no effect with store"),
        ({"prepare": {"max_side": 64}}, "max_side has no effect with source = 'digits'"),
        ({"train_student": {"resolutions": [[1, 16]]}}, "resolutions has no effect with views"),
        (
            {"views": RRC, "train_student": {"resolutions": [[2, 16]]}},
            "resolutions must begin at different epochs",
        ),
        (
            {"views": RRC, "train_student": {"epochs": 3, "resolutions": [[1, 16], [9, 24]]}},
            "resolutions must begin at different epochs, the first at 1 and the last at 3",
        ),
    ],
)
def test_settings_without_effect_or_sense_are_rejected(settings, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        load_config_of(settings)


def test_batches_are_bytes_in_channels_last_memory(jpegs):
    loader = BatchLoader(jpegs.train, batch_size=8, view_spec=SPEC)
    for batch in loader.view(0):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 24, 24)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
