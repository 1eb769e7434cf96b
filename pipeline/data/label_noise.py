"""Labels that are wrong on purpose, for teachers that err."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Samples, stratified_rows

_PURPOSE = "label noise"


def noisy_labels(
    samples: Samples, *, share: float, num_classes: int, seed: int
) -> NDArray[np.int64]:
    """The labels of ``samples``, (N,), of which a share of every class is another one.

    Which, and which other class, is drawn by a hash of (seed, key): of every other class with the
    same probability, and the same on any machine in any order. Equal images get equal labels.

    Args:
        samples: of a training split.
        share: of every class, in (0, 1).
        num_classes: at least 2.
        seed: of the draw.
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
