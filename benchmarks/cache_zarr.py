"""Claim: heartcut encodes and decodes whole shards in less time and memory than zarr's pipeline.

One shard of synthetic logits, 16,384 rows of 1,000 classes. Writing encodes and hashes without a
disk: `NewArrays.write` calls zarr's codecs directly, zarr assigns to the same array. Reading reads
the file, hashes and decodes it: `ArrayReader.shard` decodes directly, zarr reads through the store
of `TeacherCache.group`. Pairs run in turn in one thread. Time is the processor time of that thread,
and memory is what Python allocates.

    python benchmarks/cache_zarr.py [--rounds 5] [--folder PLACE]
"""

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import machine
from cache_scale import write
from zarr.api.asynchronous import open_array

from pipeline.artefacts.cache.arrays import LOGITS, SHARD_ROWS, group_attributes, group_texts
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.zarr_store import NewArrays
from pipeline.runtime.coroutines import run_here

Work = Callable[[], object]


def read_by_zarr(cache: TeacherCache) -> None:
    """Read the shard by zarr, through a new store."""

    async def read() -> object:
        store = cache.reader.sealed_store()
        array = await open_array(store=store, path=LOGITS, mode="r", zarr_format=3)
        return await array.getitem((0,))

    run_here(read())


def ways(cache: TeacherCache, shard: np.ndarray) -> dict[str, tuple[Work, Work]]:
    """Pairs of the same work by name: by heartcut, and by zarr's pipeline."""
    manifest = cache.manifest
    new = NewArrays(
        cache.reader.specs, group_attributes(manifest), group_texts(manifest), lambda *_: True
    )
    array = new._arrays[LOGITS]
    return {
        "write": (
            lambda: new.write(LOGITS, 0, 0, shard),
            lambda: run_here(array.setitem((slice(0, 1),), shard[None])),
        ),
        "read": (lambda: cache.reader.shard(LOGITS, 0, 0), lambda: read_by_zarr(cache)),
    }


def milliseconds(work: Work) -> float:
    started = time.thread_time()
    work()
    return 1000 * (time.thread_time() - started)


def megabytes(work: Work) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    print(f"\nA shard of {SHARD_ROWS:,} rows of 1,000 classes, float16\n{machine()}\n")
    shard = np.random.default_rng(0).normal(0, 3, (SHARD_ROWS, 1000)).astype(np.float16)
    results: dict[str, list[tuple[float, float]]] = {}
    for codec in ("none", "zstd"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            write(Path(place, "cache"), SHARD_ROWS, shard, codec)
            cache = TeacherCache.open(Path(place, "cache"))
            for name, (here, zarr) in ways(cache, shard).items():
                rounds = range(arguments.rounds + 1)
                pairs = [(milliseconds(here), milliseconds(zarr)) for _ in rounds][1:]
                results[f"{name} {codec}"] = pairs
                ratios = [slow / fast for fast, slow in pairs]
                own, other = (statistics.median(times) for times in zip(*pairs, strict=True))
                print(
                    f"{name:<5} {codec:<4} here {own:5.1f} ms {megabytes(here):5.0f} MB   zarr "
                    f"{other:5.1f} ms {megabytes(zarr):5.0f} MB   time, zarr / here "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}), "
                    f"n = {len(pairs)}"
                )
    print(json.dumps({"machine": machine(), "milliseconds": results}))


if __name__ == "__main__":
    main()
