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

from pipeline.artefacts.preparation import Finding
from pipeline.data.images.files import PixelRule, Pixels, decode_file, read_file, resize_and_crop
from pipeline.data.images.findings import shown
from pipeline.data.images.folders import FolderReader, folding_alike
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.provenance import Json, array_sha256, pixel_key, sample_key

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST")


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of a source."""

    key: bytes
    """Sample key, 16 bytes."""
    pixels: Pixels
    jpeg: bytes | None = None
    """Content of the image's file if it is a JPEG of exactly these pixels."""
    notes: frozenset[str] = frozenset()
    """What is unusual about the image."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples of one split, in the source's own order."""

    labels: NDArray[np.int64]
    """Class ids, (N,)."""
    name: Callable[[int], str]
    """Readable name of sample i: its path, or its position in the data set."""
    load: Callable[[int], SourceImage]
    """Sample i."""
    listing: Callable[[], Json]
    """State of the files, which differs if the split may have changed; decodes no image."""

    def read(self, i: int) -> tuple[bytes, Pixels]:
        """Key, 16 bytes, and pixels, (H, W, 3) uint8, of sample i."""
        image = self.load(i)
        return image.key, image.pixels


@dataclass(frozen=True, kw_only=True)
class Source:
    """A labelled image data set."""

    description: str
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    """None if the source has only one split."""
    left_out: tuple[Finding, ...] = ()
    """Files and folders that are not images or not of a class."""
    published: bool = True
    """True for a data set with published splits, which are used as they are."""


def image_folder(root: Path, *, train: str, test: str | None, rule: PixelRule) -> Source:
    """Images in torchvision's layout, ``root/split/class/image``.

    Args:
        root: folder that holds the split folders.
        train: name of the training split's folder; empty if ``root`` holds the class folders.
        test: name of the test split's folder, or None.
        rule: how pixels are made from the files.
    Raises:
        ArtefactNotFound: if a folder is missing.
        ArtefactMismatch: if a class folder is empty, or the splits have different classes.
    """
    folders = FolderReader(root)
    classes = folders.class_folders(train, key="train")
    splits = [train] if test is None else [train, test]
    for split in splits[1:]:
        found = folders.class_folders(split, key="test")
        if found != classes:
            raise ArtefactMismatch(
                f"{shown(root / split)} has other classes than {shown(root / train)}: "
                f"{_differences(classes, found)} (expected the same class folders). Rename or add "
                "the folders."
            )
    read = [_folder_split(folders, root / split, classes, rule) for split in splits]
    return Source(
        description=f"folder {shown(root.name)}",
        class_names=classes,
        train=read[0],
        test=None if test is None else read[1],
        left_out=folders.left_out,
        published=False,
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


def _differences(train: Sequence[str], test: Sequence[str]) -> str:
    """Classes that only one of two splits has, for a message."""
    only = [sorted(set(one) - set(other)) for one, other in ((train, test), (test, train))]
    parts = [
        f"{_some(names)} only in the {split} images"
        for names, split in zip(only, ("training", "test"), strict=True)
        if names
    ]
    alike = folding_alike([*only[0], *only[1]])
    if alike:
        parts.append(f"{alike[0]!a} and {alike[1]!a} differ in case, spaces or Unicode form")
    return ", ".join(parts)


def _folder_split(
    folders: FolderReader, split: Path, classes: Sequence[str], rule: PixelRule
) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        images = folders.images(split / class_name)
        paths += images
        labels += [label] * len(images)

    def load(i: int) -> SourceImage:
        content = read_file(paths[i])
        image = decode_file(content, paths[i], rule)
        return SourceImage(
            key=sample_key(content),
            pixels=image.pixels,
            jpeg=content if image.is_plain_jpeg else None,
            notes=image.notes,
        )

    return Split(
        labels=np.array(labels, dtype=np.int64),
        name=lambda i: shown(paths[i]),
        load=load,
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

    def load(i: int) -> SourceImage:
        image = images[i]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        key = pixel_key(image)
        if resize is None:
            return SourceImage(key=key, pixels=image)
        resized = resize_and_crop(Image.fromarray(image), resize)
        return SourceImage(key=key, pixels=np.asarray(resized))

    return Split(
        labels=labels.astype(np.int64),
        name=lambda i: f"{name} sample {i}",
        load=load,
        listing=lambda: array_sha256(images),
    )


def _some(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    return ", ".join(map(shown, names[:3])) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
