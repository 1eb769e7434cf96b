"""Images with the same stored pixels: in two splits, under two labels, or twice in one split.

Two files with the same bytes always have the same pixels; two files with the same pixels may differ
in their bytes, so pixels are compared.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Samples

Numbers = NDArray[np.int64]
"""A number for each sample, (N,), which is equal where the pixels are equal."""


def image_numbers(train: Samples, test: Samples) -> tuple[Numbers, Numbers]:
    """Numbers of the images of two splits."""
    hashes = np.concatenate([train.pixels, test.pixels])
    # Hashes have 16 bytes each, so stripping zeros from their ends makes no two of them equal.
    _, numbers = np.unique(hashes.view("S16").ravel(), return_inverse=True)
    numbers = numbers.astype(np.int64)
    return numbers[: len(train)], numbers[len(train) :]


def later_copies(numbers: Numbers) -> NDArray[np.int64]:
    """Rows whose image an earlier row has."""
    _, first = np.unique(numbers, return_index=True)
    return np.setdiff1d(np.arange(len(numbers)), first)


def rows_of_two_labels(numbers: Numbers, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows whose image another row has under another label."""
    _, image = np.unique(numbers, return_inverse=True)
    lowest = np.full(len(numbers), np.iinfo(np.int64).max)
    highest = np.full(len(numbers), -1)
    np.minimum.at(lowest, image, labels)
    np.maximum.at(highest, image, labels)
    return np.flatnonzero(lowest[image] != highest[image])


def first_equal(numbers: Numbers, number: int, *, but: int = -1) -> int:
    """First row with an image, other than row ``but``."""
    return next(int(row) for row in np.flatnonzero(numbers == number) if row != but)
