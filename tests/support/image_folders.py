"""Small real image folders that several tests share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
