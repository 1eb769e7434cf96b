"""Deliberately wrong labels, for training worse teachers."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Samples, stratified_rows

_PURPOSE = "label noise"


def noisy_labels(
    samples: Samples, *, share: float, num_classes: int, seed: int
) -> NDArray[np.int64]:
    """Replace the labels of a share of every class by other classes.

    A hash of (seed, key) draws the samples and their new classes, uniform over the other classes.
    The draw is the same on any machine and in any order, and equal images get equal labels.

    Args:
        samples: the samples of a training split, N of them.
        share: share of every class to change, in (0, 1).
        num_classes: number of classes, at least 2.
        seed: seed of the draw.
    Returns:
        Labels, (N,) int64.
    """
    labels = samples.labels.copy()
    chosen = stratified_rows(samples, fraction=share, seed=seed, purpose=_PURPOSE)
    salt = f"{_PURPOSE};class;{seed};".encode()
    digests = [
        hashlib.blake2b(salt + samples.keys[row].tobytes(), digest_size=8).digest()
        for row in chosen
    ]
    drawn = np.array([int.from_bytes(digest, "little") % (num_classes - 1) for digest in digests])
    labels[chosen] = (labels[chosen] + 1 + drawn) % num_classes
    return labels
