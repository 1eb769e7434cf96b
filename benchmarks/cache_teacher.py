"""Claim: cache-teacher costs what the bare forward pass of the teacher costs (>= 0.90).

The bare pass has its batches normalised and in memory, and the same network and precision: no
loader, no views, no float32 head, no statistics, no compression, no disk. The cached pass is what
the stage does from its first batch to the last stored byte.

    python benchmarks/cache_teacher.py [--arch resnet56a] [--batch 512] [--rounds 9]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import interleaved, report, synthetic_beton

from pipeline.artefacts.cache_record import CacheLayout
from pipeline.artefacts.dataset import Beton
from pipeline.artefacts.objects import open_objects
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.models import Classifier
from pipeline.models.zoo import build
from pipeline.normalisation import Normaliser
from pipeline.runtime import Runtime, resolve_runtime
from pipeline.teacher_pass import Teacher, cache_identity, cache_views

CLASSES = 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
VIEWS = ViewSpec(padding=4, flip=True, count=1)
LAYOUT = CacheLayout(shard_rows=16_384)


def bare(model: Classifier, batches: list[torch.Tensor], runtime: Runtime) -> Callable[[], float]:
    @torch.inference_mode()
    def run() -> float:
        started = time.perf_counter()
        for images in batches:
            with runtime.autocast():
                model(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return sum(len(images) for images in batches) / (time.perf_counter() - started)

    return run


def cached(
    teacher: Teacher, loader: BatchLoader, beton: Beton, runtime: Runtime, folder: Path
) -> Callable[[], float]:
    """Each call fills and seals one more cache of a clean and an augmented view."""
    number = iter(range(10**9))

    def run() -> float:
        started = time.perf_counter()
        identity = cache_identity(teacher, beton=beton, views=VIEWS, runtime=runtime, features=True)
        cache_views(
            open_objects(folder / f"cache{next(number)}"),
            identity=identity,
            layout=LAYOUT,
            teacher=teacher,
            loader=loader,
            beton=beton,
            views=VIEWS,
            runtime=runtime,
            held_out=np.arange(100),
        )
        return (VIEWS.num_views + 1) * beton.num_samples / (time.perf_counter() - started)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet56a")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--samples", type=int, default=5_120)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    runtime = resolve_runtime("auto")
    torch.manual_seed(0)
    model = build(arguments.arch, num_classes=CLASSES).eval().requires_grad_(False)
    model = model.to(runtime.device).to(memory_format=torch.channels_last)
    teacher = Teacher(
        model=model, digest="0" * 64, mean=MEAN, std=STD, target_in_sample=True, description="bench"
    )
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(Path(folder), num_samples=arguments.samples, num_classes=CLASSES)
        loader = BatchLoader(
            beton,
            batch_size=arguments.batch,
            view_spec=VIEWS,
            workers=runtime.loader_workers(0),
        )
        normalise = Normaliser(mean=MEAN, std=STD, device=runtime.device)
        batches = [normalise(batch.images) for batch in loader.view(0)]
        measured = interleaved(
            {
                "cache-teacher": cached(teacher, loader, beton, runtime, Path(folder)),
                "bare forward, resident tensors": bare(model, batches, runtime),
            },
            rounds=arguments.rounds,
        )
    report(
        f"teacher pass, {arguments.arch}, batch {arguments.batch}, 32 x 32, {runtime.description}",
        measured,
        baseline="bare forward, resident tensors",
        target=0.90,
    )


if __name__ == "__main__":
    main()
