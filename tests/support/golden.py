"""Golden artefacts: files that an earlier heartcut wrote, and the numbers in them."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
NUM_SAMPLES, NUM_CLASSES = 7, 5


def formula(*shape: int, step: int):
    """Exact in float16: multiples of 1/8 in -8..8, without a pattern that is easy to get right."""
    numbers = np.arange(np.prod(shape), dtype=np.int64)
    return ((numbers * step % 129 - 64) / 8).reshape(shape)


def labels():
    return np.arange(NUM_SAMPLES) * 3 % NUM_CLASSES


def digests(*, step: int):
    count = np.arange(NUM_SAMPLES * 16).reshape(NUM_SAMPLES, 16)
    return (count * step % 251).astype(np.uint8)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
