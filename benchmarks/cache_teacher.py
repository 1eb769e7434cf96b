"""Claim: cache-teacher is as fast as the bare forward pass of the teacher (>= 0.95).

The bare pass has normalised batches in memory, and the same network and precision. It has no
loader, views, float32 head, statistics, compression or disk. The cached pass is the whole stage,
from the first batch to the last stored byte.

    python benchmarks/cache_teacher.py [--arch resnet56a] [--batch 512] [--rounds 9]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import MEAN, STD, Target, device_is_done, interleaved, report, synthetic_beton
from _students import fresh_teacher

from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.views import ViewSpec
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, cache_identity

CLASSES = 10
BARE = "bare forward, resident tensors"
VIEWS = ViewSpec(padding=4, flip=True, count=1)
LAYOUT = CacheLayout(shard_rows=16_384)


def bare(model: Classifier, batches: list[torch.Tensor], runtime: Runtime) -> Callable[[], float]:
    @torch.inference_mode()
    def run() -> float:
        started = time.perf_counter()
        for images in batches:
            with runtime.autocast():
                model(images)
        device_is_done()
        return sum(len(images) for images in batches) / (time.perf_counter() - started)

    return run


def cached(planned: TeacherPass, folder: Path) -> Callable[[], float]:
    """Each call writes and seals one more cache of the clean view and the views of the pass."""
    number = iter(range(10**9))
    beton, views, kept = planned.beton, planned.views, KeptOutputs(features=True)

    def run() -> float:
        started = time.perf_counter()
        identity = cache_identity(
            planned.teacher, beton=beton, views=views, runtime=planned.runtime, kept=kept
        )
        place = open_objects(folder / f"cache{next(number)}")
        cache_views(place, planned, identity=identity, layout=LAYOUT)
        return (views.num_views + 1) * beton.num_samples / (time.perf_counter() - started)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet56a")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--samples", type=int, default=5_120)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    runtime = resolve_runtime("auto")
    teacher = fresh_teacher(arguments.arch, runtime, num_classes=CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(Path(folder), num_samples=arguments.samples, num_classes=CLASSES)
        loader = BatchLoader(
            beton,
            batch_size=arguments.batch,
            view_spec=VIEWS,
            workers=runtime.loader_workers(0),
            device=runtime.device,
        )
        normalise = Normaliser(mean=MEAN, std=STD, device=runtime.device)
        batches = [normalise(batch.images) for batch in loader.view(0)]
        planned = TeacherPass(
            teacher=teacher,
            loader=loader,
            beton=beton,
            views=VIEWS,
            runtime=runtime,
            held_out=np.arange(100),
        )
        measured = interleaved(
            {
                "cache-teacher": cached(planned, Path(folder)),
                BARE: bare(teacher.model, batches, runtime),
            },
            rounds=arguments.rounds,
        )
    report(
        f"teacher pass, {arguments.arch}, batch {arguments.batch}, 32 x 32, {runtime.description}",
        measured,
        targets=[Target(name="cache-teacher", baseline=BARE, ratio=0.95)],
    )


if __name__ == "__main__":
    main()
