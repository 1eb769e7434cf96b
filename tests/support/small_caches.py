"""Sealed caches of a few made-up rows: no teacher, no images."""

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
)
from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.record import CacheIdentity, CacheLayout, CacheShape, CacheSummary
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.writer import CacheContents, CacheWriter
from pipeline.artefacts.dataset import Samples
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.methods.sparse_logits import summarise

NUM_FEATURES = 4

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


def sealed_cache(
    folder: Path,
    samples: Samples,
    *,
    num_views: int = 1,
    num_classes: int = 5,
    top_k: int = 0,
    taus: tuple[float, ...] = (1.0, 4.0),
    shard_rows: int = 7,
) -> TeacherCache:
    """A sealed cache of ``samples`` with made-up numbers."""
    writer = CacheWriter.begin(
        open_objects(folder),
        identity=CacheIdentity(
            weights="a" * 64,
            arch="resnet8a",
            fingerprint=samples.fingerprint,
            pixel_digest=samples.pixel_digest,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            views={"padding": 1, "flip": False, "count": num_views - 1, "seed": 0},
            precision="fp32",
            features=True,
            top_k=top_k,
            temperatures=taus if top_k else (),
        ),
        shape=CacheShape(
            num_views=num_views,
            num_samples=len(samples),
            num_classes=num_classes,
            num_features=NUM_FEATURES,
        ),
        layout=CacheLayout(shard_rows=shard_rows),
        contents=CacheContents(
            labels=samples.labels,
            keys=samples.keys,
            pixels=samples.pixels,
            head_weight=np.zeros((num_classes, NUM_FEATURES), dtype=np.float32),
            head_bias=np.zeros(num_classes, dtype=np.float32),
        ),
    )
    arrays = made_up(samples, num_views=num_views, num_classes=num_classes, top_k=top_k, taus=taus)
    for unit in writer.units:
        rows = slice(*writer.manifest.rows_of(unit.shard))
        writer.write(
            unit, {name: values[unit.view, rows] for name, values in arrays.items()}, Note()
        )
    writer.seal(summary_of(num_views))
    return TeacherCache.open(folder)


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
    writer = CacheWriter.begin(
        open_objects(folder),
        identity=source.manifest.identity.model_copy(update=changes),
        shape=source.shape.model_copy(update={"num_samples": len(samples)}),
        layout=CacheLayout(shard_rows=64),
        contents=CacheContents(
            labels=samples.labels,
            keys=samples.keys,
            pixels=samples.pixels,
            head_weight=source.head[0],
            head_bias=source.head[1],
        ),
    )
    for unit in writer.units:
        part = slice(*writer.manifest.rows_of(unit.shard))
        kept = {name: values[unit.view, part] for name, values in arrays.items()}
        writer.write(unit, kept, Note())
    told = source.summary
    if target_in_sample is not None:
        told = told.model_copy(update={"target_in_sample": target_in_sample})
    writer.seal(told)
    return TeacherCache.open(folder)
