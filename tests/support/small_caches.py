"""Caches of a few synthetic rows: no teacher, no images."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.arrays import (
    FEATURES,
    LOGITS,
    LOGSUMEXP,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
    array_specs,
    object_key,
)
from pipeline.artefacts.cache.receipts import (
    Note,
    Receipt,
    Seal,
    facts_of,
    receipt_key,
    record_bytes,
)
from pipeline.artefacts.cache.record import CacheIdentity, CacheLayout, CacheShape, CacheSummary
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.writer import CacheContents, CacheWriter, Unit
from pipeline.artefacts.dataset import Samples
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.records import stored_json
from pipeline.artefacts.zarr_store import encode
from pipeline.methods.sparse_logits import summarise
from tests.support.workspaces import replace_bytes

NUM_FEATURES = 4
TAUS = (1.0, 4.0)

KINDS = {
    "dense": {},
    "top-k": {"top_k": 2, "features": False},
    "top-k with features": {"top_k": 3, "num_classes": 5, "codec": "none"},
    "logits only": {"features": False},
    "one shard": {"shard_rows": 64},
    "full shards": {"num_samples": 8, "shard_rows": 2},
    "one sample": {"num_samples": 1, "num_views": 1, "shard_rows": 1},
}

Arrays = dict[str, NDArray[np.generic]]


def identity_of(**changes) -> CacheIdentity:
    fields = {
        "weights": "a" * 64,
        "arch": "resnet8a",
        "fingerprint": "b" * 64,
        "pixel_digest": "c" * 64,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "views": {"padding": 4, "flip": True, "count": 1, "seed": 0},
        "precision": "fp32",
        "features": True,
    }
    return CacheIdentity.model_validate(fields | changes)


def summary_of(num_views: int = 2, **changes) -> CacheSummary:
    fields = {
        "accuracy_training": [0.5] * num_views,
        "accuracy_held_out": [],
        "num_wrong": 3,
        "agreement": [1.0] * num_views,
        "fidelity": [],
        "head_error": 0.0,
        "target_in_sample": False,
        "teacher": "a teacher",
        "seconds": 1.0,
        "devices": ["none"],
        "versions": {},
    }
    return CacheSummary.model_validate(fields | changes)


def some_samples(count: int, *, seed: int = 0, num_classes: int = 5) -> Samples:
    """Samples with keys that all differ."""
    rng = np.random.default_rng(seed)
    return Samples(
        keys=rng.integers(0, 256, (count, 16), dtype=np.uint8),
        labels=rng.integers(0, num_classes, count),
        pixels=rng.integers(0, 256, (count, 16), dtype=np.uint8),
    )


def made_up(samples: Samples, *, num_views: int, num_classes: int, top_k: int, taus) -> Arrays:
    """Every array of the views, (V, N, ...); rows of equal keys are equal."""
    seeds = [int.from_bytes(key[:8].tobytes(), "big") for key in samples.keys]
    drawn = np.stack(
        [
            3 * np.random.default_rng(seed).standard_normal((num_views, num_classes + NUM_FEATURES))
            for seed in seeds
        ],
        axis=1,
    ).astype(np.float16)
    logits, features = drawn[..., :num_classes], drawn[..., num_classes:]
    if not top_k:
        return {LOGITS: logits, FEATURES: features}
    labels = torch.from_numpy(samples.labels)
    kept = [
        summarise(torch.from_numpy(view.copy()), labels, top_k=top_k, temperatures=taus)
        for view in logits
    ]
    return {
        TOP_CLASS: np.stack([sparse.classes.numpy().astype(np.uint16) for sparse in kept]),
        TOP_LOGIT: np.stack([sparse.logits.numpy() for sparse in kept]),
        TARGET_LOGIT: np.stack([sparse.target.numpy() for sparse in kept]),
        LOGSUMEXP: np.stack([sparse.logsumexp.numpy() for sparse in kept]),
        FEATURES: features,
    }


def top_k_of(logits, labels, top_k: int) -> dict:
    """Arrays that a top-k cache keeps of float16 logits (V, N, C), by the definition."""
    order = np.argsort(-logits, axis=2, kind="stable")[..., :top_k]
    exact = logits.astype(np.float64)
    sums = [np.log(np.exp(exact / tau).sum(axis=2)) for tau in TAUS]
    return {
        TOP_CLASS: order.astype(np.uint16),
        TOP_LOGIT: np.take_along_axis(logits, order, axis=2),
        TARGET_LOGIT: logits[:, np.arange(len(labels)), labels],
        LOGSUMEXP: np.stack(sums, axis=2).astype(np.float32),
    }


class SyntheticCache:
    """All that a cache is written from, and where it is written."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        identity: CacheIdentity,
        layout: CacheLayout,
        contents: CacheContents,
        arrays: Arrays,
    ) -> None:
        """``arrays`` are those of the views, (V, N, ...)."""
        self.store, self.identity, self.layout = store, identity, layout
        self.contents, self.arrays = contents, arrays
        num_views, num_samples = next(iter(arrays.values())).shape[:2]
        num_classes, num_features = contents.head_weight.shape
        self.shape = CacheShape(
            num_views=num_views,
            num_samples=num_samples,
            num_classes=num_classes,
            num_features=num_features,
        )

    def begin(self, **changes) -> CacheWriter:
        wanted = {
            "identity": self.identity,
            "shape": self.shape,
            "layout": self.layout,
            "contents": self.contents,
        }
        return CacheWriter.begin(self.store, **(wanted | changes))

    def unit(self, writer: CacheWriter, unit: Unit) -> Arrays:
        """The rows of one unit."""
        rows = slice(*writer.manifest.rows_of(unit.shard))
        return {name: values[unit.view, rows] for name, values in self.arrays.items()}

    def filled(self, *, order: list[int] | None = None, note: Note | None = None) -> CacheWriter:
        """A writer that has written every unit."""
        writer = self.begin()
        units = writer.units
        for unit in units if order is None else [units[number] for number in order]:
            writer.write(unit, self.unit(writer, unit), note or Note(device="none", seconds=0.25))
        return writer

    def write(
        self, summary: CacheSummary | None = None, *, note: Note | None = None
    ) -> TeacherCache:
        """Write and seal the cache, and open it."""
        self.filled(note=note).seal(summary or summary_of(self.shape.num_views))
        return TeacherCache.open(self.store)


class SmallCache(SyntheticCache):
    """A cache of a few drawn numbers in a folder, and the numbers."""

    def __init__(
        self,
        path: Path,
        *,
        store: ObjectStore | None = None,
        num_views: int = 2,
        num_samples: int = 7,
        num_classes: int = 3,
        num_features: int = 2,
        shard_rows: int = 4,
        codec: str = "zstd",
        top_k: int = 0,
        features: bool = True,
        logits=None,
    ) -> None:
        draws = np.random.default_rng(1)
        rows = (num_views, num_samples)
        self.path = path
        if logits is None:
            logits = 5 * draws.normal(size=(*rows, num_classes))
        logits = np.asarray(logits, np.float16)
        contents = CacheContents(
            labels=draws.integers(0, num_classes, num_samples),
            keys=draws.integers(0, 256, (num_samples, 16), dtype=np.uint8),
            pixels=draws.integers(0, 256, (num_samples, 16), dtype=np.uint8),
            head_weight=draws.normal(size=(num_classes, num_features)).astype(np.float32),
            head_bias=draws.normal(size=num_classes).astype(np.float32),
        )
        arrays = {LOGITS: logits} if not top_k else top_k_of(logits, contents.labels, top_k)
        if features:
            arrays[FEATURES] = draws.normal(size=(*rows, num_features)).astype(np.float16)
        super().__init__(
            LocalObjects(path) if store is None else store,
            identity=identity_of(
                features=features, top_k=top_k, temperatures=TAUS if top_k else ()
            ),
            layout=CacheLayout(shard_rows=shard_rows, codec=codec),
            contents=contents,
            arrays=arrays,
        )

    def objects(self) -> list[Path]:
        """Files of numbers."""
        data = self.path / "data.zarr"
        return sorted(p for p in data.rglob("*") if p.is_file() and p.name != "zarr.json")

    def read(self, cache: TeacherCache, name: str) -> bool:
        """Check that one array reads as it was written, in every view."""
        if name in self.arrays:
            return all(
                np.array_equal(np.concatenate(list(cache.blocks(name, view))), expected)
                for view, expected in enumerate(self.arrays[name])
            )
        weight, bias = cache.head if name.startswith("head") else (None, None)
        found = weight if name == "head_weight" else bias if name == "head_bias" else None
        found = getattr(cache, name) if found is None else found
        return np.array_equal(found, getattr(self.contents, name))

    def matches(self, cache: TeacherCache) -> bool:
        """Check that everything reads as it was written."""
        fields = ["labels", "keys", "pixels", "head_weight", "head_bias"]
        return all(self.read(cache, name) for name in [*self.arrays, *fields])


def sealed_cache(
    folder: Path,
    samples: Samples,
    *,
    num_views: int = 1,
    num_classes: int = 5,
    top_k: int = 0,
    taus: tuple[float, ...] = TAUS,
    shard_rows: int = 7,
) -> TeacherCache:
    """A sealed cache of ``samples`` with made-up numbers."""
    return SyntheticCache(
        open_objects(folder),
        identity=identity_of(
            fingerprint=samples.fingerprint,
            pixel_digest=samples.pixel_digest,
            std=(0.2, 0.2, 0.2),
            views={"padding": 1, "flip": False, "count": num_views - 1, "seed": 0},
            top_k=top_k,
            temperatures=taus if top_k else (),
        ),
        layout=CacheLayout(shard_rows=shard_rows),
        contents=CacheContents(
            labels=samples.labels,
            keys=samples.keys,
            pixels=samples.pixels,
            head_weight=np.zeros((num_classes, NUM_FEATURES), dtype=np.float32),
            head_bias=np.zeros(num_classes, dtype=np.float32),
        ),
        arrays=made_up(
            samples, num_views=num_views, num_classes=num_classes, top_k=top_k, taus=taus
        ),
    ).write(note=Note())


def rewritten(
    source: TeacherCache,
    folder: Path,
    *,
    rows: NDArray[np.int64] | None = None,
    keys: NDArray[np.uint8] | None = None,
    features: NDArray[np.generic] | None = None,
    weights: str | None = None,
    target_in_sample: bool | None = None,
) -> TeacherCache:
    """A sealed cache of some rows of another, in the order of ``rows``, with something changed.

    ``keys`` are of these rows; ``features``, (V, N, D), are of all rows of the source.
    """
    rows = np.arange(source.shape.num_samples) if rows is None else rows
    samples = Samples(
        keys=source.keys[rows] if keys is None else keys,
        labels=source.labels[rows],
        pixels=source.pixels[rows],
    )
    views = range(source.shape.num_views)
    arrays = {LOGITS: np.stack([source.logits(view)[rows] for view in views])}
    changes = {"fingerprint": samples.fingerprint, "pixel_digest": samples.pixel_digest}
    if weights is not None:
        changes["weights"] = weights
    if source.manifest.identity.features:
        given = np.stack([source.features(v) for v in views]) if features is None else features
        arrays[FEATURES] = given[:, rows].astype(np.float16)
    summary = source.summary
    if target_in_sample is not None:
        summary = summary.model_copy(update={"target_in_sample": target_in_sample})
    return SyntheticCache(
        open_objects(folder),
        identity=source.manifest.identity.model_copy(update=changes),
        layout=CacheLayout(shard_rows=64),
        contents=CacheContents(
            labels=samples.labels,
            keys=samples.keys,
            pixels=samples.pixels,
            head_weight=source.head[0],
            head_bias=source.head[1],
        ),
        arrays=arrays,
    ).write(summary, note=Note())


def reseal(path: Path, *, manifest: bytes | None = None, receipts: dict | None = None) -> None:
    """Write other contents together with a seal that vouches for them."""
    seal = Seal.model_validate_json((path / "sealed.json").read_bytes())
    metadata = dict(seal.metadata)
    if manifest is not None:
        (path / "manifest.json").write_bytes(manifest)
        metadata["manifest.json"] = digest_of(manifest)
    changed = Seal.of(metadata, seal.receipts if receipts is None else receipts, seal.summary)
    (path / "sealed.json").write_bytes(record_bytes(changed))


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def edited(path: Path, change: Callable[[dict], None]) -> bytes:
    """The manifest with a change, in the one text that it may have."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    return stored_json(manifest)


def forged(cache: Path) -> None:
    """Other numbers under the same id, sealed as if they were computed."""
    store, found = LocalObjects(cache), TeacherCache.open(cache)
    spec = array_specs(found.manifest)[LOGITS]
    values = found.logits(0) + np.float16(1)
    data = encode(spec, values)
    receipt = Receipt.of(facts_of(data, values, rows=(0, len(values))), Note())
    key = receipt_key(LOGITS, 0, 0)
    replace_bytes(cache / object_key(spec, 0, 0), data)
    replace_bytes(cache / key, record_bytes(receipt))
    receipts = {**found.seal.receipts, key: receipt.facts}
    seal = Seal.of(found.seal.metadata, receipts, found.summary)
    replace_bytes(cache / "sealed.json", record_bytes(seal))
    assert store.size("sealed.json") is not None


def vouch(small: SmallCache, name: str, view: int, shard: int) -> None:
    """Change the seal so that it vouches for what an object holds now."""
    cache = TeacherCache.described(small.store)
    (path,) = small.path.glob(f"data.zarr/{name}/c/{view}/{shard}/*")
    data, key = path.read_bytes(), f"receipts/{name}/{view}.{shard}.json"
    facts = cache.seal.receipts[key].model_copy(
        update={"bytes": len(data), "sha256": sha256(data).hexdigest()}
    )
    reseal(small.path, receipts=cache.seal.receipts | {key: facts})
