"""Claim: a cache of ImageNet's size is written, verified and read at half the speed of a file copy.

Synthetic logits of 1,000 classes, one view, uncompressed, one process for each size. Writing
encodes, hashes and syncs the data, and writes receipts and the seal. Reading hashes every byte with
SHA-256 and decodes it. Hydrating makes a verified copy in one memory-mapped file. The file copy
reads and writes the same number of bytes, and syncs at the end. Time must be linear in the number
of rows, and memory bounded.

    python benchmarks/cache_scale.py [--rows 80000 320000 1280000] [--rounds 3] [--folder PLACE]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import machine

from pipeline.artefacts.cache.arrays import LOGITS, SHARD_ROWS, view_arrays
from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import Joined
from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.record import (
    CacheIdentity,
    CacheLayout,
    CacheManifest,
    CacheShape,
    CacheSummary,
)
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import check_cache
from pipeline.artefacts.cache.writer import CacheContents, CacheWriter, writing_behind
from pipeline.artefacts.objects.addresses import open_objects

CLASSES, FEATURES = 1000, 2048
BLOCK = 1 << 22
TARGET_RATIO, TARGET_RSS = 0.5, 2e9


def identity(*, features: bool = False, top_k: int = 0) -> CacheIdentity:
    return CacheIdentity(
        weights="0" * 64,
        arch="synthetic",
        fingerprint="0" * 64,
        pixel_digest="0" * 64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        views={"count": 0},
        precision="fp32",
        features=features,
        top_k=top_k,
        temperatures=(1.0, 4.0) if top_k else (),
    )


def summary() -> CacheSummary:
    return CacheSummary(
        accuracy_training=[0.0],
        accuracy_held_out=[],
        num_wrong=0,
        agreement=[1.0],
        fidelity=[],
        head_error=0.0,
        target_in_sample=False,
        teacher="synthetic",
        seconds=0.0,
        devices=[],
        versions={},
    )


def contents(num_rows: int) -> CacheContents:
    keys = np.random.default_rng(0).integers(0, 256, (num_rows, 16), dtype=np.uint8)
    return CacheContents(
        labels=np.arange(num_rows) % CLASSES,
        keys=keys,
        pixels=keys,
        head_weight=np.zeros((CLASSES, FEATURES), np.float32),
        head_bias=np.zeros(CLASSES, np.float32),
    )


def write(folder: Path, num_rows: int, shard: np.ndarray, codec: str) -> None:
    """Write a sealed cache; its shards have the same numbers apart from the first row."""
    writer = CacheWriter.begin(
        open_objects(folder),
        identity=identity(),
        shape=CacheShape(
            num_views=1, num_samples=num_rows, num_classes=CLASSES, num_features=FEATURES
        ),
        layout=CacheLayout(shard_rows=SHARD_ROWS, codec=codec),
        contents=contents(num_rows),
    )
    with writing_behind(writer) as keep:
        for unit in writer.units:
            start, stop = writer.manifest.rows_of(unit.shard)
            rows = shard[: stop - start].copy()
            rows[0] = unit.shard % 7
            keep(unit, {LOGITS: rows}, Note())
    writer.seal(summary())


def read(folder: Path) -> None:
    for block in TeacherCache.open(folder).blocks(LOGITS, 0):
        assert block.shape[1] == CLASSES


def verify(folder: Path) -> None:
    assert not check_cache(open_objects(folder), read_bytes=True).problems


def hydrate(folder: Path, into: Path, num_rows: int) -> None:
    joined = Joined(rows=np.arange(num_rows), accepted=())
    cached = HydratedCache(cache=TeacherCache.open(folder), joined=joined, folder=into)
    assert cached.logits(0, temperature=1.0).shape == (num_rows, CLASSES)


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(BLOCK):
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(num_rows: int, rounds: int, place: Path) -> dict[str, object]:
    """Measure each step and the copy before it in seconds, and this process's peak memory."""
    shard = np.random.default_rng(0).normal(0, 3, (SHARD_ROWS, CLASSES)).astype(np.float16)
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(dir=place))
        try:
            flat, again = folder / "flat", folder / "again"
            with flat.open("wb") as file:
                for start in range(0, num_rows, SHARD_ROWS):
                    file.write(shard[: num_rows - start].tobytes())
            os.sync()
            steps: dict[str, Callable[[], None]] = {
                "write": lambda: write(folder / "none", num_rows, shard, "none"),  # noqa: B023
                "read": lambda: read(folder / "none"),  # noqa: B023
                "verify": lambda: verify(folder / "none"),  # noqa: B023
                "hydrate": lambda: hydrate(folder / "none", folder / "local", num_rows),  # noqa: B023
            }
            for name, step in steps.items():
                # Each step after its own copy: the speed of memory and disk drifts.
                beside = seconds(lambda: copy(flat, again))  # noqa: B023
                again.unlink()
                times.setdefault(name, []).append((seconds(step), beside))
        finally:
            shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": num_rows, "seconds": times, "peak_rss": peak}


def bytes_per_row() -> dict[str, int]:
    """Uncompressed bytes of one view, for each choice of what to keep."""

    def total(**kept: int) -> int:
        made = identity(features=bool(kept.get("features")), top_k=kept.get("top_k", 0))
        shape = CacheShape(num_views=1, num_samples=1, num_classes=CLASSES, num_features=FEATURES)
        manifest = CacheManifest(
            id=made.id, identity=made, shape=shape, layout=CacheLayout(shard_rows=1)
        )
        return sum(spec.row_bytes for spec in view_arrays(manifest))

    return {
        "all logits": total(),
        "all logits + features": total(features=1),
        "top 16 + label": total(top_k=16),
        "top 16 + label + features": total(top_k=16, features=1),
    }


def show(results: list[dict[str, object]]) -> None:
    print(f"\nA cache of {CLASSES} classes, one view, float16\n{machine()}\n")
    print(
        f"{'rows':>10} {'step':<8} {'s, median':>10} {'min - max':>16} {'n':>3} {'MB/s':>7}  ratio"
    )
    for result in results:
        num_bytes = 2 * CLASSES * result["rows"]
        for name, pairs in result["seconds"].items():
            values = [own for own, _ in pairs]
            ratios = [beside / own for own, beside in pairs]
            median = statistics.median(values)
            print(
                f"{result['rows']:>10,} {name:<8} {median:>10.2f} "
                f"{f'{min(values):.2f} - {max(values):.2f}':>16} {len(values):>3} "
                f"{num_bytes / median / 1e6:>7,.0f}  {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} - {max(ratios):.2f})"
            )
        print(f"{result['rows']:>10,} peak memory {result['peak_rss'] / 1e9:.2f} GB")
    print(f"\nbytes per image and view: {bytes_per_row()}")
    print(f"targets: ratio >= {TARGET_RATIO}, peak memory < {TARGET_RSS / 1e9:.0f} GB")
    print(json.dumps({"machine": machine(), "results": results, "bytes_per_row": bytes_per_row()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[80_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.rows[0], arguments.rounds, arguments.folder)))
        return
    results = []
    for num_rows in arguments.rows:
        command = [sys.executable, __file__, "--one", "--rows", str(num_rows)]
        command += ["--rounds", str(arguments.rounds), "--folder", str(arguments.folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    show(results)


if __name__ == "__main__":
    main()
