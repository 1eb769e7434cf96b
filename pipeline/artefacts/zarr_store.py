"""Stores that connect zarr to a cache: they return verified objects and create each one once.

Zarr describes the arrays, its codecs encode them, and it decodes them for `TeacherCache.group`; the
store is the trust boundary. `SealedStore` gives zarr only verified bytes, and only the `zarr.json`
that the manifest allows. It raises if an object is missing, where zarr would read the fill value.
`NewStore` creates objects that are never changed, and keeps the size and SHA-256 for the receipt.

zarr's coroutines run in the calling thread (`runtime.coroutines`).
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
import zarr
import zarr.api.asynchronous as in_loop
from numpy.typing import NDArray
from zarr import AsyncArray
from zarr.abc.codec import SupportsSyncCodec
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec as ChunkSpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from pipeline.artefacts.publishing import Data
from pipeline.artefacts.zarr_arrays import (
    MISSING,
    ZARR_JSON,
    ZSTD_LEVEL,
    ArraySpec,
    array_metadata,
    chunks_of,
    group_metadata,
)
from pipeline.errors import PipelineError
from pipeline.runtime.coroutines import run_here

Arrays: TypeAlias = dict[str, AsyncArray[Any]]
Texts: TypeAlias = Mapping[str, bytes]
"""Every `zarr.json` of a group, by its key there."""
REMEMBERED: Final = 10
"""Objects that a reader of single rows keeps in memory: as many as zarr reads at once."""


class _Group(Store):
    """Common part of both stores."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """`get` of each."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]


class SealedStore(_Group):
    """A read-only group; every byte is verified before zarr receives it.

    Args:
        specs: the arrays of the group, by name.
        texts: the descriptions, computed from the manifest and never read from the cache.
        read: gives the verified bytes of (array, view, shard), or raises.
    """

    supports_writes = supports_deletes = False
    supports_listing = True

    def __init__(
        self,
        specs: Mapping[str, ArraySpec],
        texts: Texts,
        read: Callable[[str, int, int], Data],
    ) -> None:
        super().__init__(read_only=True)
        self._specs, self._texts, self._read = specs, texts, read
        self._recent: OrderedDict[str, Data] = OrderedDict()
        self._lock = Lock()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of a description or of a verified object; None: the group has no such key."""
        data: Data | None = self._texts.get(key)
        if data is None and self._names(key) is not None:
            data = await asyncio.to_thread(self._verified, key)
        return None if data is None else prototype.buffer.from_bytes(_cut(data, byte_range))

    async def exists(self, key: str) -> bool:
        """True for keys that the manifest defines; `get` raises if the object is missing."""
        return key in self._texts or self._names(key) is not None

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Reject: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Reject: the store is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Every key of the group, by its specifications."""
        for key in self._texts:
            yield key
        for spec in self._specs.values():
            for key in spec.object_keys():
                yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys that begin with ``prefix``."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below ``prefix``, by the descriptions alone."""
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        found = {key.removeprefix(below).partition("/")[0] for key in self._texts}
        for name in sorted(found) if not below else ["c", ZARR_JSON]:
            yield name

    def _names(self, key: str) -> tuple[str, int, int] | None:
        spec = self._specs.get(key.partition("/")[0])
        place = None if spec is None else spec.place_of(key)
        return None if spec is None or place is None else (spec.name, *place)

    def _verified(self, key: str) -> Data:
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        name = self._names(key)
        assert name is not None
        data = self._read(*name)
        with self._lock:
            self._recent[key] = data
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return data


@dataclass(frozen=True, kw_only=True)
class Created:
    """An object that zarr encoded, as a receipt describes it."""

    bytes: int
    sha256: str


class NewStore(_Group):
    """A group that zarr writes; nothing in it can be changed or read back.

    Args:
        texts: the descriptions that zarr may write.
        create: stores an object; False if it was there with the same bytes.
    """

    supports_writes = True
    supports_deletes = supports_listing = False

    def __init__(self, texts: Texts, create: Callable[[str, Data], bool]) -> None:
        super().__init__(read_only=False)
        self._texts, self._create = texts, create
        self.created: dict[str, Created] = {}

    async def get(
        self,
        key: str,  # noqa: ARG002
        prototype: BufferPrototype,  # noqa: ARG002
        byte_range: ByteRequest | None = None,  # noqa: ARG002
    ) -> Buffer | None:
        """None, so that zarr never merges new rows with what is stored."""
        return None

    async def exists(self, key: str) -> bool:
        """True for what was created here."""
        return key in self.created

    async def set(self, key: str, value: Buffer) -> None:
        """Create an object; for a description, write the text that the manifest gives."""
        data: Data = value.as_numpy_array().data
        if key.rpartition("/")[2] == ZARR_JSON:
            data = self._described(key, value.to_bytes())
        digest = sha256(data).hexdigest()
        self._create(key, data)
        self.created[key] = Created(bytes=len(data), sha256=digest)

    async def delete(self, key: str) -> None:
        """Reject: an object is created once."""
        raise NotImplementedError(key)

    async def list(self) -> AsyncIterator[str]:
        """The keys that were created here and not released."""
        for key in self.created:
            yield key

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Reject: nothing is read back."""
        raise NotImplementedError(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Reject: nothing is read back."""
        raise NotImplementedError(prefix)

    def _described(self, key: str, found: bytes) -> bytes:
        expected: dict[str, Any] = json.loads(self._texts[key])
        given: dict[str, Any] = json.loads(found)
        if {name: given.get(name) for name in expected} != expected:
            raise PipelineError(
                f"zarr {zarr.__version__} describes {key} differently from the cache format "
                "(expected the same fields). Install the version in requirements.lock."
            )
        return self._texts[key]


class NewArrays:
    """The arrays of a group, encoded by zarr and created object by object.

    Args:
        specs: the arrays of the group, by name.
        attributes: attributes of the group.
        texts: descriptions of the group, which are created at once.
        create: stores an object; False if it was there with the same bytes.
    """

    def __init__(
        self,
        specs: Mapping[str, ArraySpec],
        attributes: Mapping[str, Any],
        texts: Texts,
        create: Callable[[str, Data], bool],
    ) -> None:
        self._specs = specs
        self._store = NewStore(texts, create)
        self._arrays = run_here(self._described(attributes))

    def write(self, name: str, view: int, shard: int, rows: NDArray[np.generic]) -> Created:
        """Create the object of one shard of one view, or of an array that is one chunk."""
        spec, array = self._specs[name], self._arrays[name]
        key = spec.key(view, shard)
        if spec.shard_rows is None:
            run_here(array.setitem(..., rows))
        else:
            run_here(self._store.set(key, _encoded_shard(spec, array, rows)))
        return self._store.created.pop(key)

    async def _described(self, attributes: Mapping[str, Any]) -> Arrays:
        await in_loop.create_group(store=self._store, attributes=dict(attributes), zarr_format=3)
        return {name: await self._array(spec) for name, spec in self._specs.items()}

    async def _array(self, spec: ArraySpec) -> AsyncArray[Any]:
        zstd = [ZstdCodec(level=ZSTD_LEVEL, checksum=False)] if spec.codec == "zstd" else []
        return await in_loop.create_array(
            self._store,
            name=spec.name,
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=spec.chunk_shape,
            shards=spec.shard_shape,
            filters=None,
            serializer=BytesCodec(endian=None if spec.dtype == "uint8" else "little"),
            compressors=[*zstd, Crc32cCodec()],
            fill_value=np.nan if spec.dtype.startswith("float") else 0,
            dimension_names=spec.dimensions,
            config={"write_empty_chunks": True},
            zarr_format=3,
        )


def _encoded_shard(spec: ArraySpec, array: AsyncArray[Any], rows: NDArray[np.generic]) -> Buffer:
    """The bytes that `array.setitem` would store, from the same codecs without an event loop.

    Zarr's own pipeline copies each chunk twice more (docs/performance.md). `_encode_sync` and the
    chunk specification are not public; tests compare all bytes with those of `setitem`.
    """
    (sharding,) = array.metadata.codecs
    assert isinstance(sharding, ShardingCodec)
    assert 0 < len(rows) <= spec.num_chunks * spec.chunk_rows
    prototype = default_buffer_prototype()
    described = ChunkSpec(
        shape=sharding.chunk_shape,
        dtype=array.metadata.data_type,
        fill_value=array.metadata.fill_value,
        config=array.config,
        prototype=prototype,
    )

    def encoded(codecs: Iterable[object], values: NDArray[np.generic]) -> NDArray[np.uint8]:
        data: Any = prototype.nd_buffer.from_numpy_array(values)
        for codec in codecs:
            assert isinstance(codec, SupportsSyncCodec)
            data = codec._encode_sync(data, described)
        bytes_of: NDArray[np.uint8] = data.as_numpy_array()
        return bytes_of

    out, end = np.empty(spec.max_stored_bytes, np.uint8), 0  # unused pages take no memory
    index = np.full((spec.num_chunks, 2), MISSING)
    for number, chunk in enumerate(chunks_of(spec, rows)):
        data = encoded(sharding.codecs, chunk)
        index[number] = end, len(data)
        out[end : end + len(data)] = data
        end += len(data)
    data = encoded(sharding.index_codecs, index)
    out[end : end + len(data)] = data
    return prototype.buffer.from_array_like(out[: end + len(data)])


def encode(spec: ArraySpec, rows: NDArray[np.generic]) -> bytes:
    """Encode a shard (its rows in one view) or an array of one chunk to its stored bytes."""
    if spec.shard_rows is not None:
        spec = replace(spec, shape=(1, len(rows), *spec.shape[2:]))
    found: dict[str, bytes] = {}

    def keep(key: str, data: Data) -> bool:
        found[key] = bytes(data)
        return True

    NewArrays({spec.name: spec}, {}, _texts(spec), keep).write(spec.name, 0, 0, rows)
    return found[spec.key()]


def _texts(spec: ArraySpec) -> Texts:
    return {
        ZARR_JSON: group_metadata({}),
        f"{spec.name}/{ZARR_JSON}": array_metadata(spec),
    }


def _cut(data: Data, part: ByteRequest | None) -> Data:
    match part:
        case RangeByteRequest(start, end):
            return memoryview(data)[start:end]
        case OffsetByteRequest(offset):
            return memoryview(data)[offset:]
        case SuffixByteRequest(suffix):
            return memoryview(data)[-suffix:]
    return data
