import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import sources
from pipeline.data.images.files import PixelRule, UnreadableImage, strict_decoding
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from tests.support.image_folders import (
    CLASSES,
    save_fashion_mnist,
    save_folder,
    textures,
    write_idx,
)


def open_folder(root, *, train="train", test="test", resize=None):
    return sources.image_folder(root, train=train, test=test, rule=PixelRule(resize=resize))


def encoded(image, kind):
    content = BytesIO()
    image.save(content, kind)
    return content.getvalue()


def read_bytes(tmp_path, content, *, resize=None):
    """First image of a folder whose first file has these bytes."""
    root = save_folder(tmp_path / "images", train=3, test=3)
    path = root / "train" / "ant" / "000.png"
    path.write_bytes(content)
    return open_folder(root, resize=resize).train.read(0)


def assert_one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_folder_gives_every_image_its_class_its_name_and_a_key_of_its_bytes(image_root):
    source = open_folder(image_root)
    assert source.class_names == CLASSES
    assert (len(source.train.labels), len(source.test.labels)) == (74, 9)
    for i in range(74):
        key, pixels = source.train.read(i)
        path = source.train.name(i)
        content = Path(path).read_bytes()
        assert key == hashlib.blake2b(content, digest_size=16).digest()
        assert CLASSES[source.train.labels[i]] in path
        assert np.array_equal(pixels, np.asarray(Image.open(BytesIO(content))))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(textures(1, seed=1)[0]).convert(mode)
    content = encoded(image, "TIFF")
    _, pixels = read_bytes(tmp_path, content)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert np.array_equal(pixels, np.asarray(Image.open(BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((4, 4), 300, np.uint16),
        np.full((4, 4), 70_000, np.int32),
        np.full((4, 4), 0.5, "f4"),
    ],
)
def test_pixels_of_more_than_8_bits_are_rejected_and_not_clipped(tmp_path, pixels):
    content = encoded(Image.fromarray(pixels), "TIFF")
    with pytest.raises(UnreadableImage, match="expected 8 bits per channel") as caught:
        read_bytes(tmp_path, content)
    assert_one_line(caught, "000.png", "--skip-corrupt")


PNG = encoded(Image.fromarray(textures(1, seed=1)[0]), "PNG")
JPEG = encoded(Image.fromarray(textures(1, seed=1)[0]), "JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"no image at all", "no image format is recognised (15 bytes)"),
        (PNG[: len(PNG) // 2], "bytes)"),
        (JPEG[: len(JPEG) // 2], "bytes)"),
        (PNG[:30] + b"\0\0" + PNG[32:], "bytes)"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_in_one_line(tmp_path, content, message):
    with pytest.raises(UnreadableImage, match="readable image") as caught:
        read_bytes(tmp_path, content)
    assert_one_line(caught, "000.png", message, "--skip-corrupt")


@given(data=st.data(), content=st.sampled_from([PNG, JPEG]))
def test_no_damage_to_an_image_is_anything_but_pixels_or_one_line(data, content, tmp_path_factory):
    damaged = bytearray(content[: data.draw(st.integers(1, len(content)))])
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    try:
        with strict_decoding():
            pixels = sources.decode_file(bytes(damaged), path, PixelRule()).pixels
    except UnreadableImage as error:
        message = str(error)
    else:
        message = f"{path} has pixels of {pixels.dtype}"
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize(("size", "side"), [((20, 10), 8), ((10, 33), 12), ((7, 7), 16)])
def test_resizing_keeps_the_centre_square(tmp_path, size, side):
    image = Image.new("RGB", size, (255, 255, 255))
    image.paste((0, 0, 0), (size[0] // 2 - 1, size[1] // 2 - 1, size[0] // 2 + 2, size[1] // 2 + 2))
    _, pixels = read_bytes(tmp_path, encoded(image, "PNG"), resize=side)
    assert pixels.shape == (side, side, 3)
    assert pixels[side // 2, side // 2].max() < 128
    assert pixels[0, 0].min() > 200


def test_resizing_to_the_same_size_changes_nothing(tmp_path):
    _, pixels = read_bytes(tmp_path, PNG, resize=16)
    assert np.array_equal(pixels, textures(1, seed=1)[0])


def test_a_file_removed_after_the_listing_is_reported_in_one_line(tmp_path):
    root = save_folder(tmp_path, train=6, test=3)
    split = open_folder(root).train
    (root / "train" / "ant" / "000.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file") as caught:
        split.read(0)
    assert_one_line(caught, "000.png", "--skip-corrupt")


def test_a_folder_named_like_an_image_is_a_folder_of_images(tmp_path):
    root = save_folder(tmp_path, train=6, test=3)
    below = root / "train" / "ant" / "0.png"
    below.mkdir()
    assert len(open_folder(root).train.labels) == 6
    (root / "train" / "ant" / "000.png").rename(below / "1.png")
    split = open_folder(root).train
    assert len(split.labels) == 6
    assert split.name(0) == str(below / "1.png")


def test_the_listing_differs_once_a_file_has_changed(tmp_path):
    root = save_folder(tmp_path, train=6, test=3)
    before = open_folder(root).train.listing()
    assert before == open_folder(root).train.listing()
    (root / "train" / "ant" / "000.png").write_bytes(JPEG)
    assert before != open_folder(root).train.listing()
    split = open_folder(root).train
    (root / "train" / "ant" / "000.png").unlink()
    assert before != split.listing()


def test_a_missing_folder_is_reported_with_the_layout(tmp_path):
    with pytest.raises(ArtefactNotFound, match="train is not a folder") as caught:
        open_folder(tmp_path / "nowhere")
    assert_one_line(caught, str(tmp_path), "<class>/<image>", "`prepare.path`")


def test_a_missing_test_split_is_reported(tmp_path):
    root = save_folder(tmp_path)
    with pytest.raises(ArtefactNotFound, match="valid is not a folder") as caught:
        open_folder(root, test="valid")
    assert_one_line(caught, "`prepare.test`")


def test_an_empty_class_folder_is_named(tmp_path):
    root = save_folder(tmp_path)
    (root / "train" / "bee" / "notes.txt").write_text("no image")
    for path in (root / "train" / "bee").glob("*.png"):
        path.unlink()
    with pytest.raises(ArtefactMismatch, match="bee holds no image") as caught:
        open_folder(root)
    assert_one_line(caught, ".png", "remove the class folder")


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_are_rejected(tmp_path, count):
    (tmp_path / "train").mkdir()
    for name in CLASSES[:count]:
        (tmp_path / "train" / name).mkdir()
    with pytest.raises(ArtefactMismatch, match=f"has {count} class folder") as caught:
        open_folder(tmp_path)
    assert_one_line(caught, "expected at least 2", "one folder per class")


def test_other_classes_in_the_test_split_are_named(tmp_path):
    root = save_folder(tmp_path)
    (root / "test" / "cat").rename(root / "test" / "dog")
    with pytest.raises(ArtefactMismatch, match="has other classes than") as caught:
        open_folder(root)
    assert_one_line(caught, "cat", "dog", "Rename or add the folders")


def test_digits_are_1797_images_of_8_pixels_in_one_split():
    source = sources.digits()
    assert source.test is None
    assert len(source.train.labels) == 1797
    assert source.class_names == tuple("0123456789")
    key, pixels = source.train.read(5)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert pixels.max() == 255
    assert key == source.train.read(5)[0] != source.train.read(6)[0]
    assert source.train.name(5) == "digits sample 5"


def bicubic(image, side):
    with Image.fromarray(image) as whole:
        return np.asarray(whole.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("side", [4, 8, 64])
def test_digits_are_resized_and_keep_their_keys(side):
    plain, resized = sources.digits().train, sources.digits(resize=side).train
    for i in (0, 5, 1796):
        (key, image), (same_key, pixels) = plain.read(i), resized.read(i)
        assert key == same_key
        assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.uint8)
        assert np.array_equal(pixels, bicubic(image, side))
    assert np.array_equal(plain.labels, resized.labels)
    assert plain.listing() == resized.listing()


def test_torchvisions_files_are_read_unchanged(tmp_path):
    grey, labels = save_fashion_mnist(tmp_path)
    source = sources.torchvision_dataset("FashionMNIST", root=tmp_path, download=False)
    assert len(source.class_names) == 10
    assert source.class_names[9] == "Ankle boot"
    assert np.array_equal(source.train.labels, labels[:300])
    assert np.array_equal(source.test.labels, labels[300:])
    for split, offset in ((source.train, 0), (source.test, 300)):
        for i in (0, 7, 99):
            expected = np.repeat(grey[offset + i][:, :, None], 3, axis=2)
            assert np.array_equal(split.read(i)[1], expected)
    assert source.test.name(7) == "FashionMNIST test sample 7"


def test_torchvisions_images_are_resized(tmp_path):
    grey, _ = save_fashion_mnist(tmp_path)
    source = sources.torchvision_dataset("FashionMNIST", root=tmp_path, download=False, resize=32)
    for split, offset in ((source.train, 0), (source.test, 300)):
        expected = bicubic(np.repeat(grey[offset + 3][:, :, None], 3, axis=2), 32)
        assert np.array_equal(split.read(3)[1], expected)


def test_the_listing_of_torchvisions_files_follows_their_pixels(tmp_path):
    grey, labels = save_fashion_mnist(tmp_path)
    first = sources.torchvision_dataset("FashionMNIST", root=tmp_path, download=False)
    grey[0, 0, 0] ^= 1
    write_idx(tmp_path / "FashionMNIST" / "raw", "train", grey[:300], labels[:300])
    second = sources.torchvision_dataset("FashionMNIST", root=tmp_path, download=False)
    assert first.train.listing() != second.train.listing()
    assert first.test.listing() == second.test.listing()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "FashionMNIST"])
def test_a_missing_torchvision_data_set_is_reported_in_one_line(tmp_path, name):
    with pytest.raises(ArtefactNotFound, match=f"{name} is missing or damaged under") as caught:
        sources.torchvision_dataset(name, root=tmp_path, download=False)
    assert_one_line(caught, str(tmp_path), "`prepare.download = true`")


@pytest.mark.parametrize("keep", [0, 3, 10, 1000])
def test_damaged_torchvision_files_are_reported_in_one_line(tmp_path, keep):
    save_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactNotFound, match="missing or damaged") as caught:
        sources.torchvision_dataset("FashionMNIST", root=tmp_path, download=False)
    assert_one_line(caught, "FashionMNIST", str(tmp_path))


def test_an_unknown_torchvision_data_set_is_rejected_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'MNIST' .*CIFAR10, CIFAR100, FashionMNIST"):
        sources.torchvision_dataset("MNIST", root=tmp_path, download=False)
