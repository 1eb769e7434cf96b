"""Time that a cache costs, stage by stage, from unit costs measured on this machine."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pipeline.artefacts.cache.arrays import LOGITS, array_specs
from pipeline.artefacts.cache.receipts import facts_of
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.zarr_arrays import decode
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import product_flop
from pipeline.methods.label_revision import soft_labels
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime
from pipeline.runtime.progress import progress
from stages.cache.sizes import CacheSize

_SECONDS: Final = 1.0
"""Time for which each unit of work is repeated, after a warm-up."""
_BATCH, _ROWS = 64, 4096


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Rates of one process on this machine, per second."""

    teacher_images: float
    """Forward passes."""
    written_bytes: float
    """Bytes before compression; compressed, hashed and synced to the disk."""
    read_bytes: float
    """Bytes after decompression; read, hashed and decompressed."""
    revised_rows: float
    """Soft labels: softmax, revision and rounding."""
    head_flops: float
    """Floating-point operations in Hessian products of the head."""
    device: str


def measure(model: Classifier, size: CacheSize, *, side: int, runtime: Runtime) -> UnitCosts:
    """Measure the rates for a network on images of side x side pixels, and for a cache's size."""
    with progress("measure", total=5, unit="costs") as bar:

        def rate(note: str, work: Callable[[], float]) -> float:
            bar.advance(1, note=note)
            return _rate(work)

        with tempfile.TemporaryDirectory() as folder:
            write, read = _storage(size, Path(folder))
            return UnitCosts(
                teacher_images=rate("teacher", _forward(model, side, runtime)),
                written_bytes=rate("write", write),
                read_bytes=rate("read", read),
                revised_rows=rate("revision", _revise(size.num_classes)),
                head_flops=rate("influence", _product(size.num_classes, size.num_features)),
                device=runtime.description,
            )


def stages(size: CacheSize, costs: UnitCosts, *, products: int) -> Iterator[tuple[str, str, float]]:
    """Yield (stage, work, seconds) of every part that grows with the number of images.

    ``products`` is the number of Hessian products of the influence (`influence_costs`).
    """
    rows = size.num_views * size.num_samples
    num_bytes = rows * size.bytes_per_row
    num_views = max(size.num_views - 1, 1)
    flops = products * product_flop(
        size.num_samples, num_classes=size.num_classes, num_features=size.num_features
    )
    yield "cache-teacher", f"{rows:,} forward passes", rows / costs.teacher_images
    yield "cache-teacher", f"{num_bytes:,} bytes written", num_bytes / costs.written_bytes
    yield "select", f"{num_bytes:,} bytes read", num_bytes / costs.read_bytes
    revised = num_views * size.num_samples
    yield "select", f"{revised:,} labels revised", revised / costs.revised_rows
    if size.settings.features and products:
        yield (
            "select",
            f"influence, clean view, {products:,} products, {flops:.1e} flop",
            flops / costs.head_flops,
        )


def _rate(work: Callable[[], float]) -> float:
    """Units per second."""
    work()
    done, passed, started = 0.0, 0.0, time.perf_counter()
    while passed < _SECONDS:
        done += work()
        passed = time.perf_counter() - started
    return done / passed


def _forward(model: Classifier, side: int, runtime: Runtime) -> Callable[[], float]:
    images = torch.rand(_BATCH, 3, side, side, device=runtime.device)
    images = images.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> float:
        with runtime.autocast():
            model(images).float().cpu()
        return len(images)

    return forward


def _storage(size: CacheSize, folder: Path) -> tuple[Callable[[], float], Callable[[], float]]:
    """Functions that write and read a shard of logits like a cache does."""
    from pipeline.artefacts.zarr_store import encode  # slow to import

    # Rows of a top-k cache cost the same per byte.
    dense = replace(size.keeping(size.settings.model_copy(update={"top_k": 0})), num_samples=1)
    spec = array_specs(dense.manifest)[LOGITS]
    assert spec.shard_rows is not None
    shape = (spec.shard_rows, size.num_classes)
    rows = np.random.default_rng(0).normal(0, 3, shape).astype(np.float16)
    store, numbers = open_objects(folder), count()

    def write() -> float:
        data = encode(spec, rows)
        facts_of(data, rows, rows=(0, len(rows)))
        store.create(f"shard{next(numbers)}", data)
        return float(rows.nbytes)

    def read() -> float:
        data = store.read("shard0", max_bytes=spec.max_stored_bytes)
        facts_of(data, decode(spec, data, len(rows)), rows=(0, len(rows)))
        return float(rows.nbytes)

    return write, read


def _revise(num_classes: int) -> Callable[[], float]:
    logits = torch.randn(_ROWS, num_classes)
    labels = torch.arange(_ROWS) % num_classes

    def revise() -> float:
        soft_labels(logits, labels, revision="all", eta=0.8, temperature=4.0).half()
        return len(logits)

    return revise


def _product(num_classes: int, num_features: int) -> Callable[[], float]:
    """A Hessian product in float32, as `select` computes it for many samples."""
    problem = HeadProblem(
        features=torch.randn(1, _ROWS, num_features),
        labels=torch.arange(_ROWS) % num_classes,
        l2=1e-3,
        dtype=torch.float32,
        products=torch.float32,
    )
    linear = problem.linearise(torch.zeros(num_classes, num_features + 1))
    direction = torch.randn(num_classes, num_features + 1)

    def product() -> float:
        linear.hvp(direction)
        return product_flop(_ROWS, num_classes=num_classes, num_features=num_features)

    return product
