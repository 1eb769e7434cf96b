"""Claim: the loader hands out replayed views with soft labels at 200,000 CIFAR images/s or more.

python benchmarks/loader.py [--classes 10] [--rounds 9]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import Measured, interleaved, report, synthetic_beton

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader, Supervision
from pipeline.data.views import ViewSpec

BATCH = 512
VIEWS = ViewSpec(padding=4, flip=True, count=4)


def soft_labels(beton: Beton, num_classes: int) -> Supervision:
    generator = np.random.default_rng(1)
    shape = (beton.num_samples, num_classes)
    return Supervision(
        soft_labels=[generator.random(shape).astype(np.float16) for _ in range(VIEWS.count)],
        selected=generator.random(beton.num_samples) < 0.85,
        labels=beton.samples.labels,
        by_view=True,
        num_classes=num_classes,
    )


def epochs(loader: BatchLoader) -> Callable[[], float]:
    """Each call reads one more epoch and returns its images per second."""
    number = 0

    def run() -> float:
        nonlocal number
        started = time.perf_counter()
        count = sum(len(batch) for batch in loader.epoch(number))
        number += 1
        return count / (time.perf_counter() - started)

    return run


def copies(beton: Beton) -> Callable[[], float]:
    """The limit: the same batches copied from one place in memory to another."""
    images = np.zeros((beton.num_samples, 32, 32, 3), dtype=np.uint8)
    destination = np.empty((BATCH, 32, 32, 3), dtype=np.uint8)

    def run() -> float:
        started = time.perf_counter()
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            destination[: len(part)] = part
        return len(images) / (time.perf_counter() - started)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(
            Path(folder), num_samples=arguments.samples, num_classes=arguments.classes
        )
        supervision = soft_labels(beton, arguments.classes)
        with_soft = BatchLoader(
            beton, batch_size=BATCH, view_spec=VIEWS, order="random", supervision=supervision
        )
        without = BatchLoader(beton, batch_size=BATCH, view_spec=VIEWS, order="random")
        measured: list[Measured] = interleaved(
            {
                "views and soft labels": epochs(with_soft),
                "views": epochs(without),
                "plain memory copy of the batches": copies(beton),
            },
            rounds=arguments.rounds,
        )
    report(
        f"loader, {arguments.samples:,} images of 32 x 32, batch {BATCH}, random order, "
        f"{arguments.classes} classes",
        measured,
        baseline="views",
        target=200_000,
    )


if __name__ == "__main__":
    main()
