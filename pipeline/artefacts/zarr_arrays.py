"""The Zarr v3 arrays of a cache: sizes, keys and descriptions that do not rely on stored files.

A specification gives the only valid `zarr.json` of an array and the exact size of everything in
it. `zarr_store` encodes with zarr and lets zarr decode; whole shards are decoded here, into memory
whose size is known before their bytes are parsed.

Arrays with a shard axis are (view, row, ...): one object per view and `shard_rows` rows, chunks
along the rows only, each compressed and followed by its CRC-32C, the shard index (offset and size
of every chunk, then a CRC-32C) at the end. Other arrays are one chunk.

Zarr core 3.0 and its codecs `bytes`, `zstd`, `crc32c`, `sharding_indexed`:
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pipeline.artefacts.publishing import Data
from pipeline.artefacts.records import stored_json
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json

Codec: TypeAlias = Literal["zstd", "none"]
DType: TypeAlias = Literal["float16", "float32", "int32", "uint16", "uint8"]

_CHUNK_BYTES = 512 * 1024
_MAX_CHUNK_ROWS = 4096
ZSTD_LEVEL: Final = 1
MISSING: Final = np.uint64(2**64 - 1)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CRC_BYTES = 4
ZARR_JSON: Final = "zarr.json"


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the group."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    dimensions: tuple[str, ...]
    shard_rows: int | None = None
    """Rows of a shard; None: the array is one chunk."""
    codec: Codec = "zstd"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one view."""
        return int(np.dtype(self.dtype).itemsize * math.prod(self.shape[2:]))

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: a power of two of about 512 KiB, or the whole shard if it is smaller."""
        assert self.shard_rows is not None
        rows = min(_MAX_CHUNK_ROWS, max(1, _CHUNK_BYTES // self.row_bytes))
        rows = 1 << (rows.bit_length() - 1)
        return rows if self.shard_rows % rows == 0 else self.shard_rows

    @property
    def num_chunks(self) -> int:
        """Chunks of a full shard."""
        assert self.shard_rows is not None
        return self.shard_rows // self.chunk_rows

    @property
    def object_bytes(self) -> int:
        """Decoded bytes of the largest object."""
        if self.shard_rows is None:
            return int(np.dtype(self.dtype).itemsize * math.prod(self.shape))
        return self.shard_rows * self.row_bytes

    @property
    def max_stored_bytes(self) -> int:
        """Limit on an encoded object: zstd adds at most 1/256 to data that it cannot compress."""
        chunks = 1 if self.shard_rows is None else self.num_chunks
        return self.object_bytes + self.object_bytes // 256 + 1024 * (chunks + 1)

    def uncompressed_bytes(self, num_rows: int) -> int:
        """Bytes of a shard of ``num_rows`` rows, stored with the codec "none"."""
        chunk_bytes = self.chunk_rows * self.row_bytes + CRC_BYTES
        index_bytes = 16 * self.num_chunks + CRC_BYTES
        return -(-num_rows // self.chunk_rows) * chunk_bytes + index_bytes

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk within a shard, or of the whole array if it is one chunk."""
        return self.shape if self.shard_rows is None else (1, self.chunk_rows, *self.shape[2:])

    @property
    def shard_shape(self) -> tuple[int, ...] | None:
        """Shape of a shard; None: the array is one chunk."""
        return None if self.shard_rows is None else (1, self.shard_rows, *self.shape[2:])

    @property
    def num_shards(self) -> int:
        """Shards of each view."""
        return 1 if self.shard_rows is None else -(-self.shape[1] // self.shard_rows)

    def key(self, view: int = 0, shard: int = 0) -> str:
        """Key of an object in the group."""
        if self.shard_rows is None:
            return "/".join([self.name, "c", *("0" for _ in self.shape)])
        return "/".join([self.name, "c", str(view), str(shard), *("0" for _ in self.shape[2:])])

    def object_keys(self) -> Iterator[str]:
        """Keys of all objects in the group."""
        for view in range(1 if self.shard_rows is None else self.shape[0]):
            yield from (self.key(view, shard) for shard in range(self.num_shards))

    def place_of(self, key: str) -> tuple[int, int] | None:
        """View and shard of an object in the group; None if the array has no such object."""
        if self.shard_rows is None:
            return (0, 0) if key == self.key() else None
        parts = key.split("/")[2:4]
        if len(parts) < 2 or not all(re.fullmatch(r"\d{1,10}", part, re.ASCII) for part in parts):
            return None
        view, shard = map(int, parts)
        is_there = view < self.shape[0] and shard < self.num_shards
        return (view, shard) if is_there and key == self.key(view, shard) else None

    def num_rows(self, shard: int) -> int:
        """Rows of a shard; the last shard may have fewer."""
        assert self.shard_rows is not None
        return min(self.shard_rows, self.shape[1] - shard * self.shard_rows)

    def selection(self, view: int, shard: int) -> tuple[slice, ...]:
        """Place of an object's rows in the array."""
        if self.shard_rows is None:
            return (slice(None),) * len(self.shape)
        start = shard * self.shard_rows
        rows = slice(start, start + self.num_rows(shard))
        return (slice(view, view + 1), rows, *(slice(None) for _ in self.shape[2:]))


def group_metadata(attributes: Mapping[str, Json]) -> bytes:
    """zarr.json of the group."""
    return stored_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def array_metadata(spec: ArraySpec) -> bytes:
    """The only valid zarr.json of the array."""
    chunk, codecs = list(spec.shape), _chunk_codecs(spec)
    if spec.shard_rows is not None:
        chunk = [1, spec.shard_rows, *spec.shape[2:]]
        configuration: dict[str, Json] = {
            "chunk_shape": [1, spec.chunk_rows, *spec.shape[2:]],
            "codecs": codecs,
            "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    return stored_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(spec.shape),
            "data_type": spec.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if spec.dtype.startswith("float") else 0,
            "codecs": codecs,
            "attributes": {},
            "dimension_names": list(spec.dimensions),
            "storage_transformers": [],
        }
    )


def chunks_of(spec: ArraySpec, rows: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """The chunks of a shard; the last one is padded with the fill value."""
    rows = np.ascontiguousarray(rows, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    size = spec.chunk_rows
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        if len(chunk) < size:
            fill = np.nan if rows.dtype.kind == "f" else 0
            padding = np.full((size - len(chunk), *rows.shape[1:]), fill, dtype=rows.dtype)
            chunk = np.concatenate([chunk, padding])
        yield chunk


def sound_chunks(spec: ArraySpec, data: Data, num_rows: int | None) -> list[memoryview]:
    """The stored chunks of a shard of ``num_rows`` rows, or the only chunk of an unsharded array.

    Nothing is decompressed. The chunks of a shard must follow one another without a gap up to the
    index, and every chunk must declare its exact decoded size.

    Raises:
        ArtefactMismatch: if they do not: decoding would give more or less than the array holds.
    """
    stored = memoryview(data)
    if spec.shard_rows is None:
        chunks, expected = [stored], spec.object_bytes
    else:
        assert num_rows is not None
        assert 0 < num_rows <= spec.shard_rows
        chunks = _chunks(spec, stored, -(-num_rows // spec.chunk_rows))
        expected = spec.chunk_rows * spec.row_bytes
    for chunk in chunks:
        _require_size(spec, chunk, expected)
    return chunks


def decode(spec: ArraySpec, data: Data, num_rows: int | None) -> NDArray[np.generic]:
    """Decode the rows of a shard, or an array of one chunk.

    Zarr returns the same rows but needs more time and memory for a whole shard, because it copies
    each row twice more (docs/performance.md).

    Raises:
        ArtefactMismatch: if zarr cannot have written these bytes for ``spec``.
    """
    chunks = sound_chunks(spec, data, num_rows)
    rows = len(chunks) * spec.chunk_rows if spec.shard_rows is not None else 0
    shape = spec.shape if spec.shard_rows is None else (rows, *spec.shape[2:])
    out = np.empty(shape, np.dtype(spec.dtype).newbyteorder("<"))
    for chunk, part in zip(
        chunks, np.split(out.reshape(-1).view(np.uint8), len(chunks)), strict=True
    ):
        _decode_chunk(spec, chunk, part)
    if spec.shard_rows is None:
        return out
    _without_crc(_index(spec, memoryview(data)), f"the index of {spec.name}")
    return out[:num_rows]


_LITTLE_ENDIAN: dict[str, Json] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C: dict[str, Json] = {"name": "crc32c"}


def _chunk_codecs(spec: ArraySpec) -> list[Json]:
    to_bytes: dict[str, Json] = _LITTLE_ENDIAN if spec.dtype != "uint8" else {"name": "bytes"}
    configuration: dict[str, Json] = {"level": ZSTD_LEVEL, "checksum": False}
    zstd: list[Json] = [{"name": "zstd", "configuration": configuration}]
    return [to_bytes, *(zstd if spec.codec == "zstd" else []), _CRC32C]


def _decode_chunk(spec: ArraySpec, stored: memoryview, out: NDArray[np.uint8]) -> None:
    encoded = _without_crc(stored, f"a chunk of {spec.name}")
    if spec.codec == "none":
        out[:] = encoded
        return
    try:
        Zstd().decode(encoded, out=out)
    except (RuntimeError, ValueError) as error:
        raise ArtefactMismatch(f"a chunk of {spec.name} does not decompress: {error}") from error


def _without_crc(stored: memoryview, what: str) -> NDArray[np.uint8]:
    data = np.frombuffer(stored, np.uint8)[:-CRC_BYTES]
    if CRC32C.checksum(data) != int.from_bytes(stored[-CRC_BYTES:], "little"):
        raise ArtefactMismatch(f"{what} does not match its CRC-32C")
    return data


def _require_size(spec: ArraySpec, stored: memoryview, expected: int) -> None:
    """Reject a chunk that does not declare ``expected`` decoded bytes."""
    if spec.codec == "zstd":
        _require_content_size(stored[:-CRC_BYTES], expected, spec.name)
    elif len(stored) != expected + CRC_BYTES:
        raise ArtefactMismatch(
            f"a chunk of {spec.name} has {max(len(stored) - CRC_BYTES, 0):,} bytes "
            f"(expected {expected:,})"
        )


def _require_content_size(frame: memoryview, expected: int, name: str) -> None:
    """Reject a zstd frame that would decompress to another size, before decompressing it.

    RFC 8878, section 3.1.1.1: magic number, descriptor, window, dictionary id, content size.
    """
    found = None
    if len(frame) > 4 and bytes(frame[:4]) == _ZSTD_MAGIC:
        descriptor = frame[4]
        single_segment = (descriptor >> 5) & 1
        size = (single_segment, 2, 4, 8)[descriptor >> 6]
        start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
        if size:
            found = int.from_bytes(frame[start : start + size], "little") + 256 * (size == 2)
    if found != expected:
        size_found = "an unknown number of" if found is None else f"{found:,}"
        raise ArtefactMismatch(
            f"a chunk of {name} claims to hold {size_found} bytes (expected {expected:,})"
        )


def _chunks(spec: ArraySpec, data: memoryview, used: int) -> list[memoryview]:
    """The chunks of a shard that hold rows: one after the other, as zarr writes them."""
    index = np.frombuffer(_index(spec, data)[:-CRC_BYTES], "<u8").reshape(-1, 2)
    room = len(data) - 16 * spec.num_chunks - CRC_BYTES
    end, chunks = 0, []
    for offset, size in index[:used].tolist():
        if offset != end or offset + size > room:
            raise ArtefactMismatch(f"the index of a shard of {spec.name} points elsewhere")
        end = offset + size
        chunks.append(data[offset:end])
    if end != room or (index[used:] != MISSING).any():
        raise ArtefactMismatch(f"the index of a shard of {spec.name} points elsewhere")
    return chunks


def _index(spec: ArraySpec, data: memoryview) -> memoryview:
    """The index of a shard with its CRC-32C."""
    size = 16 * spec.num_chunks + CRC_BYTES
    if len(data) < size:
        raise ArtefactMismatch(f"a shard of {spec.name} is shorter than its index")
    return data[-size:]
