"""The teacher cache: the teacher's outputs for every sample in every view.

    <id>/
        manifest.json                   id, everything that the id depends on, shape and layout
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
number of workers and readers need no lock, and a cache can be in a folder, in a bucket or behind a
web server. Zarr silently reads a missing object as the fill value, so the receipts, not Zarr,
decide what exists: opening compares sizes, and reading compares SHA-256. Paths, shapes and codecs
are never taken from stored files (`cache.arrays`).
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

        Descriptions are checked here, and sizes if the store can be listed; contents are checked
        when they are read.

        Raises:
            ArtefactNotFound: if there is no sealed cache.
            Damaged: if an object is missing, of another size, or differs from the seal.
        """
        cache = cls.described(open_objects(place) if isinstance(place, str | Path) else place)
        cache.require_metadata()
        if cache.store.can_list:
            cache.require_sizes()
        return cache

    @classmethod
    def described(cls, store: ObjectStore) -> Self:
        """Open a cache and check only its seal and its manifest; see `open`."""
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
                f"{store.url} is sealed with array descriptions that differ from its manifest. "
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
        """Folder or address of the cache, for messages."""
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
            Damaged: while reading, if an object is missing or differs from the seal.
        """
        import zarr  # slow to load, and reading whole shards does not need it

        return zarr.open_group(self.reader.sealed_store(), mode="r", zarr_format=3)

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all objects that hold numbers."""
        return sum(facts.bytes for _, facts in self.objects())

    def objects(self) -> Iterator[tuple[str, Facts]]:
        """Key and facts of every object that holds numbers."""
        for name in object_names(self.manifest):
            yield object_key(self.reader.specs[name[0]], *name[1:]), self.reader.facts(*name)

    def blocks(self, name: str, view: int) -> Iterator[NDArray[np.generic]]:
        """One view of an array in sample order, a shard at a time, a few in memory.

        Raises:
            Damaged: if an object is missing, was changed, or contains NaN or infinity.
        """
        for block in self.reader.blocks(name, view):
            if not np.isfinite(extremes(block)).all():
                raise Damaged(
                    f"{self.path} contains NaN or infinity in {name} of view {view}. "
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
                "(expected all of them). Set `cache_teacher.top_k = 0` and run "
                "`heartcut cache-teacher` again."
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
        """Class ids, (N,) int64."""
        return self.reader.whole(LABELS).astype(np.int64)

    @property
    def keys(self) -> NDArray[np.uint8]:
        """Sample keys, (N, 16) uint8."""
        return self.reader.whole(KEYS).astype(np.uint8, copy=False)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Hashes of the decoded pixels, (N, 16) uint8."""
        return self.reader.whole(PIXELS).astype(np.uint8, copy=False)

    @property
    def head(self) -> tuple[Float32, Float32]:
        """The teacher's classifier: weight (C, D) and bias (C,), float32."""
        weight, bias = self.reader.whole(HEAD_WEIGHT), self.reader.whole(HEAD_BIAS)
        return weight.astype(np.float32, copy=False), bias.astype(np.float32, copy=False)

    def require_metadata(self) -> None:
        """Reject array descriptions that could mislead other readers of the cache."""
        for error in self.wrong_metadata():
            raise error

    def wrong_metadata(self) -> Iterator[Damaged]:
        """Yield an error for each array description that is missing or wrong."""
        expected = metadata_objects(self.manifest)

        def problem(key: str) -> Damaged | None:
            try:
                if self.store.read(key, max_bytes=len(expected[key])) == expected[key]:
                    return None
            except (ArtefactMismatch, ArtefactNotFound) as error:
                return Damaged(str(error))
            return Damaged(
                f"{self.path}/{key} does not describe what was sealed. {remedy(self.store)}"
            )

        return filter(None, read_in_threads(problem, iter(expected)))

    def require_sizes(self) -> None:
        """Reject a cache with an object that is missing or of another size."""
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
        """Reject a cache that was made without features."""
        if not self.manifest.identity.features:
            raise ArtefactMismatch(
                f"{self.path} has no features (expected them for influence). "
                "Set `cache_teacher.features = true` and run `heartcut cache-teacher`, "
                "or choose another `select.strategy`."
            )

    def require_temperature(self, temperature: float) -> None:
        """Reject a temperature at which the mass of the omitted classes was not stored."""
        kept = self.manifest.identity.temperatures
        if self.is_sparse and temperature not in kept:
            known = " and ".join(f"{value:g}" for value in kept)
            raise ArtefactMismatch(
                f"{self.path} keeps the top {self.manifest.identity.top_k} logits, and the sum of "
                f"all at temperature {known} (expected {temperature:g} among them). Choose one of "
                "them, or add it to `cache_teacher.temperatures` and run `heartcut cache-teacher`."
            )

    def _joined_blocks(self, name: str, view: int) -> Float16:
        return np.concatenate(list(self.blocks(name, view))).astype(np.float16, copy=False)


def top_and_class(logits: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """The largest value of each row and the first column that has it."""
    top, classes = torch.from_numpy(logits).max(dim=1)  # ten times faster than numpy in float16
    return top.numpy(), classes.numpy()
