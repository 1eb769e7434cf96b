"""Decoding and resizing, against Pillow."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import image_kernels
from pipeline.data.betons import Jpeg, Storage, decode
from pipeline.data.ffcv_compat import JPEG_MODE
from pipeline.data.image_kernels import resize_crop
from tests.support.image_folders import cmyk_jpeg, photographs
from tests.support.view_oracles import resized_by_pillow


def jpeg_of(pixels, **options):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def as_jpeg(content, pixels):
    return Jpeg(content=content, height=pixels.shape[0], width=pixels.shape[1])


def resized(image, box, side):
    destination = np.full((side, side, 3), 77, dtype=np.uint8)
    resize_crop(image.reshape(len(image), -1), np.array(box, np.int32), destination)
    return destination


@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 70))
def test_a_crop_is_resized_as_pillow_does_it_to_the_bit(data, height, width, side):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (data.draw(st.integers(0, extent - 1)) for extent in (height, width))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    box = (top, left, h, w, data.draw(st.integers(0, 1)))
    assert np.array_equal(resized(image, box, side), resized_by_pillow(image, box, side))


@pytest.mark.parametrize("side", [128, 224])
def test_crops_of_large_images_are_resized_as_pillow_does_it(side):
    image = photographs(1, seed=5, sides=(480, 481))[0]
    for box in [(0, 0, 480, 480, 0), (3, 5, 401, 333, 1), (100, 90, 130, 170, 0)]:
        ours = resized(image, box, side)
        assert np.array_equal(ours, resized_by_pillow(image, box, side))


def test_a_crop_of_the_wanted_size_is_copied():
    image = photographs(1, seed=6, sides=(50, 51))[0]
    assert np.array_equal(resized(image, (4, 7, 32, 32, 0), 32), image[4:36, 7:39])
    assert np.array_equal(resized(image, (4, 7, 32, 32, 1), 32), image[4:36, 7:39][:, ::-1])


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}]
)
def test_jpegs_are_decoded_as_pillow_does_it_but_for_the_fast_transform(options):
    image = photographs(1, seed=7, sides=(90, 140))[0]
    content = jpeg_of(image, **options)
    with Image.open(BytesIO(content)) as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    difference = np.abs(decode(as_jpeg(content, image)) - expected)
    assert difference.mean() < 1.5
    assert difference.max() < 16


def damaged(content):
    """The same JPEG cut off, zeroed, and with a marker in the middle of its data."""
    middle = len(content) // 2
    yield content[:middle]
    yield bytes(len(content))
    yield content[:middle] + b"\xff\xd9" + content[middle + 2 :]
    yield b""


def test_a_damaged_jpeg_is_reported():
    image = photographs(1, seed=8, sides=(90, 140))[0]
    content = jpeg_of(image)
    assert decode(as_jpeg(content, image)) is not None
    for broken in damaged(content):
        assert decode(as_jpeg(broken, image)) is None


def test_a_jpeg_of_these_pixels_is_kept_byte_for_byte():
    content = jpeg_of(photographs(1, seed=9, sides=(60, 80))[0])
    with Image.open(BytesIO(content)) as file:
        pixels = np.asarray(file.convert("RGB"))
    stored, shown = Storage(store="jpeg").stored(pixels, content)
    assert stored == as_jpeg(content, pixels)
    assert np.array_equal(shown, decode(stored))


@pytest.mark.parametrize("kind", ["other pixels", "cmyk", "cut off"])
def test_a_jpeg_that_the_loader_decodes_differently_is_encoded_again(kind):
    image, other = photographs(2, seed=10, sides=(60, 60))
    files = {
        "other pixels": jpeg_of(other),
        "cmyk": cmyk_jpeg(image),
        "cut off": jpeg_of(image)[:-99],
    }
    stored, shown = Storage(store="jpeg", quality=95).stored(image, files[kind])
    assert stored.content != files[kind]
    assert np.abs(shown.astype(int) - image).mean() < 6
    with Image.open(BytesIO(stored.content)) as file:
        assert (file.format, file.mode, file.size) == ("JPEG", "RGB", (60, 60))


def test_mixed_storage_keeps_small_images_as_pixels():
    small, large = (
        photographs(1, seed=1, sides=(20, 30))[0],
        photographs(1, seed=2, sides=(20, 31))[0],
    )
    storage = Storage(store="mixed", raw_pixels=600)
    stored, shown = storage.stored(small, jpeg_of(small))
    assert stored is small
    assert shown is small
    assert isinstance(storage.stored(large, None)[0], Jpeg)
    assert storage.stored(small, None)[0] is small


def test_every_thread_decodes_into_room_of_its_own(monkeypatch):
    """The kernel as plain Python, the only form in which the thread can be set."""
    image = photographs(1, seed=3, sides=(90, 120))[0]
    file = np.frombuffer(jpeg_of(image), np.uint8)
    table = np.array([[0, len(file), JPEG_MODE, *image.shape[:2]]])
    boxes = np.array([[0, 0, 90, 90, 0]], np.int32)
    decoded = np.zeros((3, image.size), np.uint8)
    monkeypatch.setattr(image_kernels, "get_thread_id", lambda: 1)
    views = np.empty((1, 24, 24, 3), np.uint8)
    assert image_kernels.show_views.py_func(file, table, boxes, decoded, views).all()
    assert np.array_equal(decoded[1], decode(as_jpeg(file.tobytes(), image)).ravel())
    assert not decoded[[0, 2]].any()
