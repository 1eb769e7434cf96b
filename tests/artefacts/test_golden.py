"""Caches of every format version that was ever released still open, to the bit.

python -m tests.artefacts.test_golden     write those of this version; only for a new format version
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.record import (
    FORMAT_VERSION,
    CacheIdentity,
    CacheLayout,
    CacheSummary,
    Fidelity,
)
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import check_cache
from pipeline.artefacts.cache.writer import CacheContents
from pipeline.artefacts.objects.local import LocalObjects
from tests.support.golden import GOLDEN, NUM_CLASSES, NUM_SAMPLES, digests, files, formula, labels
from tests.support.small_caches import SyntheticCache

NUM_VIEWS, NUM_FEATURES, SHARD_ROWS, TOP_K = 2, 3, 4, 2
TAUS = (1.0, 4.0)

ROOTS = {
    ("v2", "dense"): "693383ea1059317583a648153d40c9cb3c051af3b37e3392d3b9ba51da73955b",
    ("v2", "top-k"): "2cfeb5a86113ef739015b5c2da3ae100e45381c48e04b4f654dd4e861ec7ab8a",
}
"""Root hashes; those of a released version never change."""
IDS = {
    ("v2", "dense"): "0298654e76ff2b13a96001e0e6b36f1a6454c7de724d6e9bce010ae991197cc0",
    ("v2", "top-k"): "f22bcfe669e10036c936ecc01c99d57dd02de42f82a9cab4b46ff9ba191e2679",
}
THIS_VERSION = [key for key in ROOTS if key[0] == f"v{FORMAT_VERSION}"]


def contents() -> CacheContents:
    return CacheContents(
        labels=labels(),
        keys=digests(step=7),
        pixels=digests(step=11),
        head_weight=formula(NUM_CLASSES, NUM_FEATURES, step=31).astype(np.float32),
        head_bias=formula(NUM_CLASSES, step=17).astype(np.float32),
    )


def arrays(kind: str) -> dict:
    """Arrays of each view of a cache; not a teacher's, but numbers that are known."""
    rows = (NUM_VIEWS, NUM_SAMPLES)
    if kind == "dense":
        return {
            "logits": formula(*rows, NUM_CLASSES, step=37).astype(np.float16),
            "features": formula(*rows, NUM_FEATURES, step=53).astype(np.float16),
        }
    first = np.arange(NUM_VIEWS * NUM_SAMPLES).reshape(rows)
    return {
        "topk_class": (np.stack([first, first + 2], axis=2) % NUM_CLASSES).astype(np.uint16),
        "topk_logit": formula(*rows, TOP_K, step=37).astype(np.float16),
        "target_logit": formula(*rows, step=41).astype(np.float16),
        "logsumexp": (formula(*rows, len(TAUS), step=43) + 1 / 1024).astype(np.float32),
    }


def identity(kind: str) -> CacheIdentity:
    return CacheIdentity(
        weights="0" * 64,
        arch="resnet8a",
        fingerprint="1" * 64,
        pixel_digest="2" * 64,
        mean=(0.5, 0.25, 0.125),
        std=(0.25, 0.5, 0.75),
        views={"padding": 4, "flip": True, "count": 1, "seed": 0},
        precision="fp32",
        features=kind == "dense",
        top_k=0 if kind == "dense" else TOP_K,
        temperatures=() if kind == "dense" else TAUS,
    )


def summary() -> CacheSummary:
    return CacheSummary(
        accuracy_training=[0.75, 0.5],
        accuracy_held_out=[0.5, 0.25],
        num_wrong=2,
        agreement=[1.0, 0.875],
        fidelity=[Fidelity(temperature=tau, mean_kl=2**-20, max_kl=2**-18) for tau in TAUS],
        head_error=2**-10,
        target_in_sample=False,
        teacher="a golden teacher",
        seconds=1.5,
        devices=["a device"],
        versions={"heartcut": "0", "torch": "0"},
    )


def write(folder: Path, kind: str) -> TeacherCache:
    """The golden cache of this version, made anew."""
    return SyntheticCache(
        LocalObjects(folder),
        identity=identity(kind),
        layout=CacheLayout(shard_rows=SHARD_ROWS, codec="zstd" if kind == "dense" else "none"),
        contents=contents(),
        arrays=arrays(kind),
    ).write(summary(), note=Note(device="a device", seconds=0.25))


@pytest.mark.parametrize(("version", "kind"), ROOTS)
def test_a_released_cache_opens_and_reads_to_the_bit(version, kind):
    cache = TeacherCache.open(GOLDEN / f"teacher_cache-{version}" / kind)
    for name, expected in arrays(kind).items():
        for view in range(NUM_VIEWS):
            read = np.concatenate(list(cache.blocks(name, view)))
            assert (read.dtype, read.tobytes()) == (expected.dtype, expected[view].tobytes())
    original = contents()
    assert np.array_equal(cache.labels, original.labels)
    assert np.array_equal(cache.keys, original.keys)
    assert np.array_equal(cache.pixels, original.pixels)
    weight, bias = cache.head
    assert (weight.tobytes(), bias.tobytes()) == (
        original.head_weight.tobytes(),
        original.head_bias.tobytes(),
    )
    assert cache.summary == summary()
    assert cache.manifest.identity == identity(kind)


@pytest.mark.parametrize(("version", "kind"), ROOTS)
def test_a_released_cache_has_its_id_and_root_and_no_damage(version, kind):
    cache = TeacherCache.open(GOLDEN / f"teacher_cache-{version}" / kind)
    assert cache.id == IDS[version, kind]
    assert cache.root == ROOTS[version, kind]
    checked = check_cache(cache.store, read_bytes=True)
    assert (checked.problems, checked.unknown) == ([], [])


@pytest.mark.parametrize(("version", "kind"), [key for key in THIS_VERSION if key[1] == "top-k"])
def test_the_same_numbers_make_the_same_cache_today(version, kind, tmp_path):
    """The uncompressed one: another release of zstd may compress the dense one better."""
    assert write(tmp_path / "cache", kind).root == ROOTS[version, kind]
    written, golden = files(tmp_path / "cache"), files(GOLDEN / f"teacher_cache-{version}" / kind)
    assert written == golden


def test_there_is_a_golden_cache_of_this_version():
    assert {kind for _, kind in THIS_VERSION} == {"dense", "top-k"}


if __name__ == "__main__":
    for version, kind in THIS_VERSION:
        folder = GOLDEN / f"teacher_cache-{version}" / kind
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, kind)
