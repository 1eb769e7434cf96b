"""Small real image folders that several tests share."""

import struct
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import sources
from stages.config.root import Config

CLASSES = ("ant", "bee", "cat")


def textures(count: int, *, seed: int, size: int = 16) -> NDArray[np.uint8]:
    """Random images that all differ, (count, size, size, 3)."""
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_split(folder: Path, images: Iterable[NDArray[np.uint8]], *, suffix: str = ".png") -> None:
    """Deal the images to the class folders in turn: image i is ``<class i mod 3>/<i><suffix>``."""
    for i, image in enumerate(images):
        path = folder / CLASSES[i % len(CLASSES)] / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def save_folder(
    root: Path, *, train: int = 30, test: int = 9, suffix: str = ".png", size: int = 16
) -> Path:
    """A folder of textures with the splits train and test."""
    save_split(root / "train", textures(train, seed=1, size=size), suffix=suffix)
    save_split(root / "test", textures(test, seed=2, size=size), suffix=suffix)
    return root


def folder_config(workspace: Path, images: Path, **prepare: Any) -> Config:
    """A configuration that prepares the folder ``images`` in ``workspace``."""
    settings = {"source": "folder", "path": images, **prepare}
    return Config.model_validate({"workspace": workspace, "prepare": settings})


def photographs(
    count: int, *, seed: int, sides: tuple[int, int], spread: int = 0
) -> list[NDArray[np.uint8]]:
    """Textured images with smooth colours, edges and a little noise, as JPEGs are made for.

    Args:
        count: of images.
        seed: of all.
        sides: height and width in pixels.
        spread: largest number of pixels by which a side is longer.
    """
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        height, width = (side + int(rng.integers(0, spread + 1)) for side in sides)
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 6, (height, width, 1))
        pixels = np.asarray(smooth) + noise
        pixels[height // 3 : height // 2, width // 4 : width // 2] += 60
        images.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return images


def cmyk_jpeg(pixels):
    file = BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def write_idx(folder, part, images, labels):
    """One split in the format of yann.lecun.com, as torchvision keeps FashionMNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBBIII", 0, 8, 3, *images.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">HBBI", 0, 8, 1, len(labels))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def save_fashion_mnist(root):
    """FashionMNIST's files, made of 400 digits of 28 x 28 pixels."""
    split = sources.digits().train
    grey = np.stack(
        [np.kron(split.read(i)[1][1:, 1:, 0], np.ones((4, 4), "u1")) for i in range(400)]
    )
    for part, rows in (("train", slice(300)), ("t10k", slice(300, 400))):
        write_idx(root / "FashionMNIST" / "raw", part, grey[rows], split.labels[:400][rows])
    return grey, split.labels[:400]
