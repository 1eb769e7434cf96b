"""The teacher cache: what the teacher said of every sample, in every view.

    <id>/
        manifest.json                   id, everything that went into it, shape and layout
        data.zarr/                      a plain Zarr v3 group, open to any reader
            logits    (V+1, N, C) f2    view 0 is the clean evaluation view
            features  (V+1, N, D) f2    penultimate features, the classifier's input; optional
            labels    (N,) i4           the labels of the images that the teacher saw
            keys      (N, 16) u1        their sample keys: the join is by content
            pixels    (N, 16) u1        hashes of their decoded pixels
            head_weight (C, D) f4, head_bias (C,) f4    the teacher's classifier
        receipts/<array>/<v>.<s>.json   one per object, created after it is durable
        sealed.json                     created last: all receipts, their root hash, a summary
                                        (accuracy, fidelity, seconds, ...) and a digest

    where only the top k are kept, in place of logits (`methods.sparse_logits`):
            topk_class (V+1, N, K) u2, topk_logit (V+1, N, K) f2, target_logit (V+1, N) f2,
            logsumexp (V+1, N, T) f4    log sum exp(z / tau) at T temperatures

The id is a hash of the teacher's weights, the images, preprocessing, views and precision, so the
same inputs have the same id on any machine. Every object is created once and never changed, so any
number of workers and readers need no lock, and a cache may lie in a folder, in a bucket or behind
a web server. Zarr reads a missing object as the fill value without complaint, so the receipts, not
Zarr, say what is there: opening compares sizes, reading compares SHA-256, and nothing that was
stored is believed about paths, shapes or codecs (`cache.arrays`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.arrays import (
    FEATURES,
    HEAD_BIAS,
    HEAD_WEIGHT,
    KEYS,
    LABELS,
    LOGITS,
    PIXELS,
    TOP_CLASS,
    ArrayReader,
    array_specs,
    metadata_objects,
    num_objects,
    object_key,
    object_names,
    read_in_threads,
    remedy,
    sealed_metadata,
)
from pipeline.artefacts.cache.receipts import (
    MANIFEST,
    Facts,
    Seal,
    extremes,
    read_manifest,
    read_seal,
    receipt_key,
)
from pipeline.artefacts.cache.record import CacheManifest, CacheShape, CacheSummary
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, Damaged

if TYPE_CHECKING:
    import zarr

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """A sealed cache, open for reading."""

    store: ObjectStore
    manifest: CacheManifest
    seal: Seal
    reader: ArrayReader = field(repr=False)

    @classmethod
    def open(cls, place: str | Path | ObjectStore) -> Self:
        """Open a sealed cache in a folder, in a bucket or behind a web server.

        Sizes and descriptions are checked here, where the place can list; contents as they are
        read.

        Raises:
            ArtefactNotFound: if there is no sealed cache.
            Damaged: if an object is missing, of another size, or not what was sealed.
        """
        cache = cls.described(open_objects(place) if isinstance(place, str | Path) else place)
        cache.require_metadata()
        if cache.store.can_list:
            cache.require_sizes()
        return cache

    @classmethod
    def described(cls, store: ObjectStore) -> Self:
        """A cache of which only the seal and the manifest were looked at; see `open`."""
        seal = read_seal(store)
        try:
            manifest = read_manifest(store, expected=seal.metadata.get(MANIFEST))
        except ArtefactNotFound as error:
            raise Damaged(f"{store.url}/{MANIFEST} is missing. {remedy(store)}") from error
        expected = num_objects(manifest)
        if len(seal.receipts) != expected or seal.receipts.keys() != {
            receipt_key(*name) for name in object_names(manifest)
        }:
            raise Damaged(
                f"{store.url} is sealed with {len(seal.receipts):,} receipts (expected "
                f"the {expected:,} of its manifest). {remedy(store)}"
            )
        if seal.metadata != sealed_metadata(manifest):
            raise Damaged(
                f"{store.url} is sealed with other array descriptions than its manifest gives. "
                f"{remedy(store)}"
            )
        reader = ArrayReader(
            store=store,
            manifest=manifest,
            specs=array_specs(manifest),
            facts=lambda *name: seal.receipts[receipt_key(*name)],
        )
        return cls(store=store, manifest=manifest, seal=seal, reader=reader)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def path(self) -> str:
        """Where it lies, for people."""
        return self.store.url

    @property
    def root(self) -> str:
        """The hash that covers every stored byte."""
        return self.seal.root

    @property
    def summary(self) -> CacheSummary:
        return self.seal.summary

    @property
    def shape(self) -> CacheShape:
        return self.manifest.shape

    @property
    def is_sparse(self) -> bool:
        """Only the top k logits are kept."""
        return self.manifest.identity.top_k > 0

    def group(self) -> "zarr.Group":
        """The arrays as a read-only `zarr.Group`, for notebooks and other programs.

        Zarr gets only bytes that were checked against the seal. Each object is read as a whole,
        and the ten that were used last stay in memory.

        Raises:
            Damaged: while reading, if an object is missing, or is not what was sealed.
        """
        import zarr  # slow to load, and whole shards need none of it

        return zarr.open_group(self.reader.sealed_store(), mode="r", zarr_format=3)

    @property
    def num_bytes(self) -> int:
        """Of all objects of numbers, as they are stored."""
        return sum(facts.bytes for _, facts in self.objects())

    def objects(self) -> Iterator[tuple[str, Facts]]:
        """Key and facts of every object of numbers."""
        for name in object_names(self.manifest):
            yield object_key(self.reader.specs[name[0]], *name[1:]), self.reader.facts(*name)

    def blocks(self, name: str, view: int) -> Iterator[NDArray[np.generic]]:
        """One view of an array in sample order, a shard at a time, a few in memory.

        Raises:
            Damaged: if an object is missing, changed, or holds what is no number.
        """
        for block in self.reader.blocks(name, view):
            if not np.isfinite(extremes(block)).all():
                raise Damaged(
                    f"{self.path} holds {name} of view {view} that are no numbers. "
                    f"{remedy(self.store)}"
                )
            yield block

    def logits(self, view: int) -> Float16:
        """Logits of all samples in one view, (N, C) float16.

        Raises:
            ArtefactMismatch: if only the top k were kept, or an object is damaged.
        """
        if self.is_sparse:
            raise ArtefactMismatch(
                f"{self.path} keeps the top {self.manifest.identity.top_k} logits of a row "
                "(expected all of them). Set `cache_teacher.top_k = 0` and cache again."
            )
        return self._joined_blocks(LOGITS, view)

    def features(self, view: int) -> Float16:
        """Penultimate features of all samples in one view, (N, D) float16.

        Raises:
            ArtefactMismatch: if the cache was made without them, or an object is damaged.
        """
        self.require_features()
        return self._joined_blocks(FEATURES, view)

    def top_classes(self, view: int) -> NDArray[np.int64]:
        """The teacher's top class of every sample in one view, (N,) int64."""
        if self.is_sparse:
            tops = [block[:, 0] for block in self.blocks(TOP_CLASS, view)]
        else:
            tops = [top_and_class(block)[1] for block in self.blocks(LOGITS, view)]
        return np.concatenate(tops).astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64"""
        return self.reader.whole(LABELS).astype(np.int64)

    @property
    def keys(self) -> NDArray[np.uint8]:
        """Sample keys, (N, 16)."""
        return self.reader.whole(KEYS).astype(np.uint8, copy=False)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Hashes of the decoded pixels, (N, 16)."""
        return self.reader.whole(PIXELS).astype(np.uint8, copy=False)

    @property
    def head(self) -> tuple[Float32, Float32]:
        """The teacher's classifier: weight (C, D) and bias (C,)."""
        weight, bias = self.reader.whole(HEAD_WEIGHT), self.reader.whole(HEAD_BIAS)
        return weight.astype(np.float32, copy=False), bias.astype(np.float32, copy=False)

    def require_metadata(self) -> None:
        """Refuse array descriptions that other readers of the cache could be misled by."""
        for error in self.wrong_metadata():
            raise error

    def wrong_metadata(self) -> Iterator[Damaged]:
        """What is wrong with the array descriptions, one error for each."""
        expected = metadata_objects(self.manifest)

        def problem(key: str) -> Damaged | None:
            try:
                if self.store.read(key, max_bytes=len(expected[key])) == expected[key]:
                    return None
            except (ArtefactMismatch, ArtefactNotFound) as error:
                return Damaged(str(error))
            return Damaged(
                f"{self.path}/{key} is not the description of what was sealed. {remedy(self.store)}"
            )

        return filter(None, read_in_threads(problem, iter(expected)))

    def require_sizes(self) -> None:
        """Refuse a cache with an object that is missing or of another size."""
        sizes = self.store.sizes("data.zarr")
        for key, facts in self.objects():
            if key not in sizes:
                raise Damaged(
                    f"{self.path}/{key} is missing (expected {facts.bytes:,} bytes). "
                    f"{remedy(self.store)}"
                )
            if sizes[key] != facts.bytes:
                raise Damaged(
                    f"{self.path}/{key} has {sizes[key]:,} bytes (expected {facts.bytes:,}). "
                    f"{remedy(self.store)}"
                )

    def require_features(self) -> None:
        """Refuse a cache that was made without features."""
        if not self.manifest.identity.features:
            raise ArtefactMismatch(
                f"{self.path} has no features (expected them for influence). "
                "Set `cache_teacher.features = true` and run `heartcut cache-teacher`, "
                "or choose another `select.strategy`."
            )

    def require_temperature(self, temperature: float) -> None:
        """Refuse a temperature at which the mass of the classes that are not kept is unknown."""
        kept = self.manifest.identity.temperatures
        if self.is_sparse and temperature not in kept:
            told = " and ".join(f"{value:g}" for value in kept)
            raise ArtefactMismatch(
                f"{self.path} keeps the top {self.manifest.identity.top_k} logits, and the sum of "
                f"all at temperature {told} (expected {temperature:g} among them). Choose one of "
                "them, or cache again with `cache_teacher.temperatures`."
            )

    def _joined_blocks(self, name: str, view: int) -> Float16:
        return np.concatenate(list(self.blocks(name, view))).astype(np.float16, copy=False)


def top_and_class(logits: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """The largest value of each row and the first column that has it."""
    top, classes = torch.from_numpy(logits).max(dim=1)  # ten times faster than numpy in float16
    return top.numpy(), classes.numpy()
