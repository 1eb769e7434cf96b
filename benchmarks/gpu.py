"""Claims, on an H200: resnet8x4 trains an epoch of CIFAR-100's size in less than 2.5 s, from betons
with views and soft labels; it reaches 0.95 or more of the speed on resident tensors; a cache of all
162 views of 50,000 images with resnet32x4 takes less than 5 minutes.

Without a CUDA device it prints so and measures nothing.

    python benchmarks/gpu.py [--batch 512] [--views 8] [--compile]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from _common import Target, interleaved, report, synthetic_beton, timed
from _students import Student, fresh_teacher, resident, supervision_of
from cache_teacher import cached

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ALL, ViewSpec
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.teacher.caching import TeacherPass
from pipeline.training.learner import EpochSize

SAMPLES, CLASSES = 50_000, 100
TEACHER, STUDENT = "resnet32x4", "resnet8x4"
MOST_SECONDS_OF_EPOCH, MOST_SECONDS_OF_CACHE = 2.5, 300.0


def epochs(
    beton: Beton, runtime: Runtime, *, batch_size: int, compiled: bool
) -> dict[str, Callable[[], float]]:
    """Epochs of train-student's loop, and of the bare step on resident tensors."""
    views = ViewSpec(padding=4, flip=True, count=4)
    loader = BatchLoader(
        beton,
        batch_size=batch_size,
        view_spec=views,
        order="random",
        workers=runtime.loader_workers(0),
        supervision=supervision_of(beton, views, num_classes=CLASSES),
        device=runtime.device,
    )
    ours, bare = (
        Student(STUDENT, runtime, num_classes=CLASSES, compiled=compiled) for _ in range(2)
    )
    ready = resident(loader.epoch(0), bare.normalise)
    numbers = count()
    size = EpochSize(num_samples=beton.num_samples, batch_size=batch_size)

    def heartcut() -> int:
        ours.train(loader.epoch(next(numbers)), size=size)
        return beton.num_samples

    def limit() -> int:
        bare.train_bare(ready)
        return beton.num_samples

    return {"resident": timed(limit), "heartcut": timed(heartcut)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--views",
        type=int,
        default=8,
        help="number of cached views; the time of 162 is extrapolated",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--compile", action="store_true", help="compile the student with torch.compile"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device found (expected one), so nothing was measured")
        return
    runtime = resolve_runtime("auto")
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(Path(folder), num_samples=SAMPLES, num_classes=CLASSES)
        students = interleaved(
            epochs(beton, runtime, batch_size=arguments.batch, compiled=arguments.compile),
            rounds=arguments.rounds,
        )
        views = ViewSpec(padding=4, flip=True, count=arguments.views - 1)
        planned = TeacherPass(
            teacher=fresh_teacher(TEACHER, runtime, num_classes=CLASSES),
            loader=BatchLoader(
                beton,
                batch_size=2048,
                view_spec=views,
                workers=runtime.loader_workers(0),
                device=runtime.device,
            ),
            beton=beton,
            views=views,
            runtime=runtime,
            held_out=np.arange(100),
        )
        caches = interleaved({"cache-teacher": cached(planned, Path(folder))}, rounds=3)
    report(
        f"{STUDENT}, batch {arguments.batch}, {runtime.description}, and caches of {TEACHER}",
        [*students, *caches],
        targets=[Target(name="heartcut", baseline="resident", ratio=0.95)],
    )
    epoch = SAMPLES / statistics.median(students[1].per_second)
    cache = ViewSpec(padding=4, flip=True, count=ALL).num_views * SAMPLES / caches[0].median
    print(f"an epoch of {SAMPLES:,} images: {epoch:.2f} s (target {MOST_SECONDS_OF_EPOCH})")
    print(f"all 162 views, at that rate: {cache:.0f} s (target {MOST_SECONDS_OF_CACHE:.0f})")


if __name__ == "__main__":
    main()
