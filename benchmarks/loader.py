"""Claims: the loader replays views 15 times as fast as torch's DataLoader with equal augmentation,
and at 0.3 or more of the speed of copying the batches in memory; soft labels cost little, for any
number of classes.

    python benchmarks/loader.py [--classes 10 100 1000] [--rounds 9]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from _common import Target, interleaved, report, synthetic_beton
from _students import field_loader

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader
from pipeline.data.supervision import Supervision
from pipeline.data.views import ViewSpec
from pipeline.methods.sparse_labels import packed_width

BATCH, TOP_K, FEATURES = 512, 16, 256
VIEWS = ViewSpec(padding=4, flip=True, count=4)
FIELD_IMAGES = 10_240  # 40 times slower than the others, so fewer images


def supervision_of(beton: Beton, num_classes: int, *, top_k: int, features: bool) -> Supervision:
    """Soft labels of all views in one table: the time does not depend on the view."""
    generator = np.random.default_rng(1)
    width = packed_width(top_k) if top_k else num_classes
    bits = generator.integers(0, 0x3C00, (beton.num_samples, width), dtype=np.uint16)
    of_teacher = generator.random((beton.num_samples, FEATURES)).astype(np.float16)
    return Supervision(
        soft_labels=[bits if top_k else bits.view(np.float16)] * VIEWS.count,
        selected=generator.random(beton.num_samples) < 0.85,
        labels=beton.samples.labels,
        by_view=True,
        num_classes=num_classes,
        top_k=top_k,
        features=[of_teacher] * VIEWS.count if features else (),
    )


def epochs(beton: Beton, supervision: Supervision | None) -> Callable[[], float]:
    """Return a function that reads one more epoch and returns its images per second."""
    loader = BatchLoader(
        beton, batch_size=BATCH, view_spec=VIEWS, order="random", supervision=supervision
    )
    numbers = count()

    def run() -> float:
        started = time.perf_counter()
        images = sum(len(batch) for batch in loader.epoch(next(numbers)))
        return images / (time.perf_counter() - started)

    return run


def copies(num_samples: int) -> Callable[[], float]:
    """The limit: copies of the images of every batch, in random order, into the batch's memory."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_samples, 32, 32, 3), dtype=np.uint8)
    batch = np.empty((BATCH, 32, 32, 3), dtype=np.uint8)

    def run() -> float:
        order = generator.permutation(num_samples)
        started = time.perf_counter()
        for start in range(0, num_samples, BATCH):
            rows = order[start : start + BATCH]
            np.take(images, rows, axis=0, out=batch[: len(rows)], mode="clip")
        return num_samples / (time.perf_counter() - started)

    return run


def field_epochs(beton: Beton) -> Callable[[], float]:
    """torch's DataLoader from its second batch on, without the start of its workers."""
    loader = field_loader(beton, batch_size=BATCH, num_images=FIELD_IMAGES)

    def run() -> float:
        batches = iter(loader)
        next(batches)
        started = time.perf_counter()
        images = sum(len(labels) for _, labels in batches)
        return images / (time.perf_counter() - started)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    copy, field, views = "copy of the batches in memory", "torch DataLoader, PIL", "views"
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(Path(folder), num_samples=arguments.samples, num_classes=10)
        contestants = {
            copy: copies(arguments.samples),
            field: field_epochs(beton),
            views: epochs(beton, None),
        }
        fields = {
            "soft labels": {"top_k": 0, "features": False},
            f"top {TOP_K}": {"top_k": TOP_K, "features": False},
            "soft labels, features": {"top_k": 0, "features": True},
        }
        for classes in arguments.classes:
            for name, kept in fields.items():
                if kept["top_k"] < classes:
                    supervision = supervision_of(beton, classes, **kept)
                    contestants[f"+ {name}, {classes} classes"] = epochs(beton, supervision)
        measured = interleaved(contestants, rounds=arguments.rounds)
    ours = [name for name in contestants if name not in (copy, field)]
    report(
        f"loader, {arguments.samples:,} images of 32 x 32, batch {BATCH}, random order",
        measured,
        targets=[
            *(Target(name=name, baseline=field, ratio=15.0) for name in ours),
            Target(name=views, baseline=copy, ratio=0.3),
            *(Target(name=name, baseline=views, ratio=None) for name in ours[1:]),
        ],
    )


if __name__ == "__main__":
    main()
