"""Sources of images: image folders, torchvision data sets, scikit-learn's digits.

A source has two splits, whose samples can be read one by one, in any order, from any thread. This
module defines the names and keys of the samples; other modules decide how they are stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.image_files import (
    Pixels,
    SizeRule,
    decode_file,
    is_plain_jpeg,
    read_file,
    resize_and_crop,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.provenance import Json, array_sha256, pixel_key, sample_key

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # torchvision's
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples of one split, in the source's own order."""

    labels: NDArray[np.int64]
    """Class ids, (N,)."""
    name: Callable[[int], str]
    """Readable name of sample i: its path, or its position in the data set."""
    read: Callable[[int], tuple[bytes, Pixels]]
    """Sample key, 16 bytes, and pixels, (H, W, 3) uint8, of sample i."""
    jpeg: Callable[[int], bytes | None]
    """Content of the file of sample i if it is a JPEG of exactly the pixels of ``read``."""
    listing: Callable[[], Json]
    """State of the files, which differs if the split may have changed; decodes no image."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A labelled image data set."""

    description: str
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    """None if the source has only one split."""


def image_folder(
    root: Path,
    *,
    train: str,
    test: str | None,
    resize: int | None,
    max_side: int | None = None,
) -> Source:
    """Images in torchvision's layout, ``root/split/class/image``.

    Args:
        root: folder that holds the split folders.
        train: name of the training split's folder.
        test: name of the test split's folder, or None.
        resize: side in pixels; the shorter side is resized to it and the centre is kept.
        max_side: longest side in pixels; larger images are shrunk to it, others are unchanged.
    Raises:
        ArtefactNotFound: if a folder is missing.
        ArtefactMismatch: if a class folder is empty, or the splits have different classes.
    """
    classes = _class_folders(root / train)
    splits = [train] if test is None else [train, test]
    for split in splits[1:]:
        found = _class_folders(root / split)
        if found != classes:
            differing = sorted(set(found) ^ set(classes))
            raise ArtefactMismatch(
                f"{root / split} has other classes than {root / train}: {_some(differing)} in only "
                "one of the two (expected the same class folders). Rename or add the folders."
            )
    size = SizeRule(resize=resize, max_side=max_side)
    read = [_folder_split(root / split, classes, size) for split in splits]
    return Source(
        description=f"folder {root.name}",
        class_names=classes,
        train=read[0],
        test=None if test is None else read[1],
    )


def torchvision_dataset(
    name: str, *, root: Path, download: bool, resize: int | None = None
) -> Source:
    """CIFAR10, CIFAR100 or FashionMNIST as torchvision stores them under ``root``.

    Raises:
        ConfigError: if there is no such data set.
        ArtefactNotFound: if its files are missing or damaged, or cannot be downloaded.
    """
    from torchvision import datasets

    if name not in TORCHVISION:
        raise ConfigError(f"prepare.name is {name!r} (expected one of {', '.join(TORCHVISION)}).")
    make = getattr(datasets, name)
    try:
        parts = [make(root=root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        problem = "could not be downloaded to" if download else "is missing or damaged under"
        way_out = "try again" if download else "set `prepare.download = true`"
        raise ArtefactNotFound(
            f"{name} {problem} {root} (expected torchvision's files). "
            f"Copy them there, or {way_out} on a machine with internet."
        ) from error
    train, test = (
        _array_split(
            np.asarray(part.data), np.asarray(part.targets), f"{name} {split}", resize=resize
        )
        for part, split in zip(parts, ("train", "test"), strict=True)
    )
    return Source(
        description=f"torchvision {name}",
        class_names=tuple(str(c) for c in parts[0].classes),
        train=train,
        test=test,
    )


def digits(*, resize: int | None = None) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, shipped inside its wheel."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images * (255.0 / 16.0)).round().astype(np.uint8)  # grey levels are 0..16
    return Source(
        description="scikit-learn digits",
        class_names=tuple(str(c) for c in data.target_names),
        train=_array_split(pixels, data.target, "digits", resize=resize),
        test=None,
    )


def _class_folders(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise ArtefactNotFound(
            f"{split} is not a folder. Expected one folder per class in it, as "
            f"{split}/<class>/<image>; check `prepare.path`, `prepare.train` and `prepare.test`."
        )
    classes = tuple(sorted(p.name for p in split.iterdir() if p.is_dir()))
    if len(classes) < 2:
        raise ArtefactMismatch(
            f"{split} has {len(classes)} class folders (expected at least 2, one per class). "
            "Put the images into one folder per class."
        )
    return classes


def _folder_split(split: Path, classes: Sequence[str], size: SizeRule) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        images = sorted(
            p for p in (split / class_name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES
        )
        if not images:
            raise ArtefactMismatch(
                f"{split / class_name} holds no image (expected at least one of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove the class folder."
            )
        paths += images
        labels += [label] * len(images)

    def read(i: int) -> tuple[bytes, Pixels]:
        content = read_file(paths[i])
        return sample_key(content), decode_file(content, paths[i], size)

    def jpeg(i: int) -> bytes | None:
        content = read_file(paths[i])
        return content if is_plain_jpeg(content, size) else None

    return Split(
        labels=np.array(labels, dtype=np.int64),
        name=lambda i: str(paths[i]),
        read=read,
        jpeg=jpeg,
        listing=lambda: [_stat(path) for path in paths],
    )


def _stat(path: Path) -> list[str | int]:
    try:
        stat = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _array_split(
    images: NDArray[Any], labels: NDArray[Any], name: str, *, resize: int | None
) -> Split:
    """A split held in memory: (N, H, W) grey or (N, H, W, 3) uint8.

    Keys are hashes of the source's pixels before resizing, as a file's keys are of its bytes.
    """

    def read(i: int) -> tuple[bytes, Pixels]:
        image = images[i]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        key = pixel_key(image)
        if resize is None:
            return key, image
        return key, np.asarray(resize_and_crop(Image.fromarray(image), resize))

    return Split(
        labels=labels.astype(np.int64),
        name=lambda i: f"{name} sample {i}",
        read=read,
        jpeg=lambda _: None,
        listing=lambda: array_sha256(images),
    )


def _some(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
