"""The arrays of a teacher cache: their specifications from the manifest, and verified reading.

Only the manifest decides which objects exist, and their sizes and keys. Paths, shapes and codecs
are never taken from stored files. `teacher_cache` documents the layout.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.receipts import MANIFEST, Facts, record_bytes
from pipeline.artefacts.cache.record import MADE_BY, MAX_SHARD_BYTES, CacheManifest
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.zarr_arrays import (
    ZARR_JSON,
    ArraySpec,
    DType,
    array_metadata,
    decode,
    group_metadata,
    sound_chunks,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, Damaged
from pipeline.provenance import Json, short
from pipeline.runtime.read_ahead import read_ahead

if TYPE_CHECKING:
    from pipeline.artefacts.zarr_store import SealedStore

DATA: Final = "data.zarr"
LABELS, KEYS, PIXELS, HEAD_WEIGHT, HEAD_BIAS = (
    "labels",
    "keys",
    "pixels",
    "head_weight",
    "head_bias",
)
LOGITS, FEATURES = "logits", "features"
TOP_CLASS, TOP_LOGIT, TARGET_LOGIT, LOGSUMEXP = (
    "topk_class",
    "topk_logit",
    "target_logit",
    "logsumexp",
)

SHARD_ROWS = 16_384
_SHARD_BYTES = 64 << 20
_MAX_CLASSES_OF_TOP_K = 1 << 16
_READ_AHEAD = 3
SMALL_AT_ONCE: Final = 16
"""Small objects, such as receipts, that are requested at once to hide a bucket's latency."""

Key = TypeVar("Key")
Value = TypeVar("Value")


def default_shard_rows(row_bytes: int) -> int:
    """Rows of a shard where no size is asked for: 16,384, or fewer that make 64 MiB."""
    rows = max(1, _SHARD_BYTES // row_bytes)
    return int(min(SHARD_ROWS, 1 << (rows.bit_length() - 1)))


def array_specs(manifest: CacheManifest) -> dict[str, ArraySpec]:
    """Every array of a cache, by name.

    Raises:
        ArtefactMismatch: if the manifest asks for objects larger than `MAX_SHARD_BYTES`.
    """
    specs = {spec.name: spec for spec in (*_per_view(manifest), *_whole(manifest))}
    largest = max(specs.values(), key=lambda spec: spec.object_bytes)
    if largest.object_bytes > MAX_SHARD_BYTES:
        raise ArtefactMismatch(
            f"the manifest of cache {short(manifest.id)} asks for objects of "
            f"{largest.object_bytes:,} bytes in {largest.name} (expected at most "
            f"{MAX_SHARD_BYTES:,}). Set a smaller `cache_teacher.shard_rows`."
        )
    return specs


def view_arrays(manifest: CacheManifest) -> list[ArraySpec]:
    """The arrays that have one object per view and shard."""
    return [spec for spec in array_specs(manifest).values() if spec.shard_rows is not None]


def group_attributes(manifest: CacheManifest) -> dict[str, Json]:
    """Attributes of the group."""
    return {"heartcut": manifest.model_dump(mode="json")}


def group_texts(manifest: CacheManifest) -> dict[str, bytes]:
    """Every zarr.json of the group, by its key there."""
    texts = {ZARR_JSON: group_metadata(group_attributes(manifest))}
    for spec in array_specs(manifest).values():
        texts[f"{spec.name}/{ZARR_JSON}"] = array_metadata(spec)
    return texts


def metadata_objects(manifest: CacheManifest) -> dict[str, bytes]:
    """Every zarr.json of a cache, by key."""
    return {f"{DATA}/{key}": text for key, text in group_texts(manifest).items()}


def num_objects(manifest: CacheManifest) -> int:
    """Length of `object_names`, without the list: a damaged manifest may ask for any number."""
    per_view = manifest.shape.num_views * manifest.num_shards
    specs = array_specs(manifest).values()
    return sum(1 if spec.shard_rows is None else per_view for spec in specs)


def sealed_metadata(manifest: CacheManifest) -> dict[str, str]:
    """SHA-256 of manifest.json and of every zarr.json, by key: the root hash covers them."""
    objects = {MANIFEST: record_bytes(manifest), **metadata_objects(manifest)}
    return {key: sha256(data).hexdigest() for key, data in objects.items()}


def object_names(manifest: CacheManifest) -> list[tuple[str, int, int]]:
    """(array, view, shard) of every object of numbers; (array, 0, 0) where it is one chunk."""
    names = []
    for spec in array_specs(manifest).values():
        if spec.shard_rows is None:
            names.append((spec.name, 0, 0))
        else:
            views, shards = range(manifest.shape.num_views), range(manifest.num_shards)
            names += [(spec.name, view, shard) for view in views for shard in shards]
    return names


def object_key(spec: ArraySpec, view: int, shard: int) -> str:
    """Key of an object in the cache."""
    return f"{DATA}/{spec.key(view, shard)}"


@dataclass(frozen=True, kw_only=True)
class ArrayReader:
    """Reader that trusts no stored object: it checks size and SHA-256 before exact decoding."""

    store: ObjectStore
    manifest: CacheManifest
    specs: Mapping[str, ArraySpec]
    facts: Callable[[str, int, int], Facts]
    """Facts from the receipt or the seal for (array, view, shard)."""

    def shard(self, name: str, view: int, shard: int) -> NDArray[np.generic]:
        """The rows of one shard of one view.

        Raises:
            Damaged: if the object is missing, or differs from its receipt.
        """
        data = self.verified(name, view, shard)
        with self._errors_as_damage(name, view, shard):
            return decode(self.specs[name], data, self._num_rows(name, shard))

    def whole(self, name: str) -> NDArray[np.generic]:
        """An array that is one chunk."""
        return self.shard(name, 0, 0)

    def blocks(self, name: str, view: int) -> Iterator[NDArray[np.generic]]:
        """The shards of one view in order, read a little ahead."""
        shards = range(self.manifest.num_shards)
        return read_in_threads(lambda shard: self.shard(name, view, shard), shards)

    def verified(self, name: str, view: int, shard: int) -> bytes:
        """The stored bytes of an object, checked against its receipt."""
        spec, facts = self.specs[name], self.facts(name, view, shard)
        key = object_key(spec, view, shard)
        try:
            data = self.store.read(key, max_bytes=spec.max_stored_bytes)
        except ArtefactNotFound as error:
            raise Damaged(
                f"{self.store.url}/{key} is missing (expected {facts.bytes:,} bytes). "
                f"{remedy(self.store)}"
            ) from error
        if len(data) != facts.bytes:
            raise Damaged(
                f"{self.store.url}/{key} has {len(data):,} bytes (expected {facts.bytes:,}). "
                f"{remedy(self.store)}"
            )
        found = sha256(data).hexdigest()
        if found != facts.sha256:
            raise Damaged(
                f"{self.store.url}/{key} has other contents than were written: sha256 "
                f"{short(found)} (expected {short(facts.sha256)}). {remedy(self.store)}"
            )
        return data

    def sealed_store(self) -> "SealedStore":
        """A store that gives zarr verified bytes alone."""
        from pipeline.artefacts.zarr_store import SealedStore  # whole shards need no zarr

        return SealedStore(self.specs, group_texts(self.manifest), self._sound)

    def _num_rows(self, name: str, shard: int) -> int | None:
        spec = self.specs[name]
        return None if spec.shard_rows is None else spec.num_rows(shard)

    def _sound(self, name: str, view: int, shard: int) -> bytes:
        """The verified bytes of an object, safe to decode."""
        data = self.verified(name, view, shard)
        with self._errors_as_damage(name, view, shard):
            sound_chunks(self.specs[name], data, self._num_rows(name, shard))
        return data

    @contextmanager
    def _errors_as_damage(self, name: str, view: int, shard: int) -> Iterator[None]:
        try:
            yield
        except Damaged:
            raise
        except ArtefactMismatch as error:
            key = object_key(self.specs[name], view, shard)
            raise Damaged(
                f"{self.store.url}/{key} is damaged: {error}. {remedy(self.store)}"
            ) from error


def remedy(store: ObjectStore) -> str:
    """Last sentences of a message about damage: the commands that find and repair it."""
    return (
        f"Run `heartcut cache verify --bytes {store.url}` to see what else is damaged; "
        f"remove the cache and run `{MADE_BY}` or `heartcut cache pull` again."
    )


def read_in_threads(
    read: Callable[[Key], Value], keys: Iterable[Key], *, at_once: int = _READ_AHEAD
) -> Iterator[Value]:
    """``read`` of each key in order, some of them at once; as many results are in memory."""
    return read_ahead(read, keys, threads=at_once, ahead=at_once)


def _per_view(manifest: CacheManifest) -> Iterator[ArraySpec]:
    shape, identity = manifest.shape, manifest.identity
    rows = (shape.num_views, shape.num_samples)
    top_k = min(identity.top_k, shape.num_classes)

    def spec(name: str, dtype: DType, *axis: tuple[str, int]) -> ArraySpec:
        return ArraySpec(
            name=name,
            shape=(*rows, *(size for _, size in axis)),
            dtype=dtype,
            dimensions=("view", "sample", *(called for called, _ in axis)),
            shard_rows=manifest.layout.shard_rows,
            codec=manifest.layout.codec,
        )

    if top_k == 0:
        yield spec(LOGITS, "float16", ("class", shape.num_classes))
    else:
        _require_small_enough(shape.num_classes)
        yield spec(TOP_CLASS, "uint16", ("rank", top_k))
        yield spec(TOP_LOGIT, "float16", ("rank", top_k))
        yield spec(TARGET_LOGIT, "float16")
        yield spec(LOGSUMEXP, "float32", ("temperature", len(identity.temperatures)))
    if identity.features:
        yield spec(FEATURES, "float16", ("feature", shape.num_features))


def _whole(manifest: CacheManifest) -> Iterator[ArraySpec]:
    """Arrays of one chunk: small ones, and digests, which do not compress."""
    shape = manifest.shape

    def spec(name: str, dtype: DType, *axes: tuple[str, int]) -> ArraySpec:
        return ArraySpec(
            name=name,
            shape=tuple(size for _, size in axes),
            dtype=dtype,
            dimensions=tuple(called for called, _ in axes),
            codec="none",
        )

    samples, classes = ("sample", shape.num_samples), ("class", shape.num_classes)
    yield spec(LABELS, "int32", samples)
    yield spec(KEYS, "uint8", samples, ("byte", 16))
    yield spec(PIXELS, "uint8", samples, ("byte", 16))
    yield spec(HEAD_WEIGHT, "float32", classes, ("feature", shape.num_features))
    yield spec(HEAD_BIAS, "float32", classes)


def _require_small_enough(num_classes: int) -> None:
    if num_classes > _MAX_CLASSES_OF_TOP_K:
        raise ArtefactMismatch(
            f"a top-k cache has {num_classes:,} classes (expected at most "
            f"{_MAX_CLASSES_OF_TOP_K:,}). Set `cache_teacher.top_k = 0`."
        )
