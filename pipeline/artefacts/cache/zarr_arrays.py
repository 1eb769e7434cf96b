"""The Zarr v3 arrays of a cache, encoded and decoded here so that nothing stored is believed.

A specification gives the one `zarr.json` that an array may have and the exact size of everything
in it; bytes are decoded into memory that was measured before they were looked at. Any Zarr v3
reader opens the result: tests compare with zarr-python in both directions.

Arrays with a shard axis are (view, row, ...): one object per view and `shard_rows` rows, chunks
along the rows only, each compressed and followed by its CRC-32C, the shard index (offset and size
of every chunk, then a CRC-32C) at the end. Other arrays are one chunk.

Zarr core 3.0 and its codecs `bytes`, `zstd`, `crc32c`, `sharding_indexed`:
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import google_crc32c
import numpy as np
import torch
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pipeline.artefacts.cache.record import Codec, stored_json
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json

DType: TypeAlias = Literal["float16", "float32", "int32", "uint16", "uint8"]

_CHUNK_BYTES = 512 * 1024
_MAX_CHUNK_ROWS = 4096
_ZSTD_LEVEL = 1
_MISSING = np.uint64(2**64 - 1)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CRC_BYTES = 4


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
        """Rows of a chunk: a power of two, about half a mebibyte, or a shard that is less."""
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
        """No encoded object is larger: zstd adds at most a 256th to what it cannot compress."""
        chunks = 1 if self.shard_rows is None else self.num_chunks
        return self.object_bytes + self.object_bytes // 256 + 1024 * (chunks + 1)

    def uncompressed_bytes(self, num_rows: int) -> int:
        """Bytes of a shard of so many rows, stored with the codec "none"."""
        chunk_bytes = self.chunk_rows * self.row_bytes + CRC_BYTES
        index_bytes = 16 * self.num_chunks + CRC_BYTES
        return -(-num_rows // self.chunk_rows) * chunk_bytes + index_bytes

    def key(self, view: int = 0, shard: int = 0) -> str:
        """Where an object lies in the group."""
        if self.shard_rows is None:
            return "/".join([self.name, "c", *("0" for _ in self.shape)])
        return "/".join([self.name, "c", str(view), str(shard), *("0" for _ in self.shape[2:])])


def group_metadata(attributes: Mapping[str, Json]) -> bytes:
    """zarr.json of the group."""
    return stored_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def array_metadata(spec: ArraySpec) -> bytes:
    """The one zarr.json that the array may have."""
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


def encode(spec: ArraySpec, rows: NDArray[np.generic]) -> bytes:
    """The stored bytes of a shard (its rows in one view) or of an array that is one chunk."""
    rows = np.ascontiguousarray(rows, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    if spec.shard_rows is None:
        assert rows.shape == spec.shape
        return b"".join(_encode_chunk(spec, rows))
    assert rows.shape[1:] == spec.shape[2:]
    assert 0 < len(rows) <= spec.shard_rows
    size = spec.chunk_rows
    index = np.full((spec.num_chunks, 2), _MISSING, dtype="<u8")
    parts: list[bytes] = []
    offset = 0
    for number, start in enumerate(range(0, len(rows), size)):
        chunk = _encode_chunk(spec, _full(rows[start : start + size], size))
        index[number] = offset, sum(map(len, chunk))
        offset += sum(map(len, chunk))
        parts += chunk
    return b"".join([*parts, *_with_crc(index.tobytes())])


def decode(spec: ArraySpec, data: bytes, *, num_rows: int | None = None) -> NDArray[np.generic]:
    """What `encode` was given; ``num_rows`` is how many rows the shard has.

    Raises:
        ArtefactMismatch: if the bytes are not exactly what `encode` may have written.
    """
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    if spec.shard_rows is None:
        out = np.empty(spec.shape, dtype)
        _decode_chunk(spec, memoryview(data), out)
        return out
    assert num_rows is not None
    assert 0 < num_rows <= spec.shard_rows
    used = -(-num_rows // spec.chunk_rows)
    out = np.empty((used * spec.chunk_rows, *spec.shape[2:]), dtype)
    for number, (start, stop) in enumerate(_read_index(spec, data, used)):
        first = number * spec.chunk_rows
        _decode_chunk(spec, memoryview(data)[start:stop], out[first : first + spec.chunk_rows])
    return out[:num_rows]


def extremes(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest value; not finite if any value is not."""
    if values.dtype.kind == "f":  # a hundred times faster than numpy in float16
        least, most = torch.aminmax(torch.from_numpy(np.ascontiguousarray(values)))
        return float(least), float(most)
    return float(values.min()), float(values.max())


def top_and_class(logits: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """The largest value of each row and the first column that has it."""
    top, classes = torch.from_numpy(logits).max(dim=1)  # ten times faster than numpy in float16
    return top.numpy(), classes.numpy()


_LITTLE_ENDIAN: dict[str, Json] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C: dict[str, Json] = {"name": "crc32c"}


def _chunk_codecs(spec: ArraySpec) -> list[Json]:
    to_bytes: dict[str, Json] = _LITTLE_ENDIAN if spec.dtype != "uint8" else {"name": "bytes"}
    configuration: dict[str, Json] = {"level": _ZSTD_LEVEL, "checksum": False}
    zstd: list[Json] = [{"name": "zstd", "configuration": configuration}]
    return [to_bytes, *(zstd if spec.codec == "zstd" else []), _CRC32C]


def _full(rows: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """The last chunk of an array is stored whole; what is behind the end is the fill value."""
    if len(rows) == size:
        return rows
    fill = np.nan if rows.dtype.kind == "f" else 0
    padding = np.full((size - len(rows), *rows.shape[1:]), fill, dtype=rows.dtype)
    return np.concatenate([rows, padding])


def _encode_chunk(spec: ArraySpec, rows: NDArray[np.generic]) -> tuple[bytes, bytes]:
    raw = rows.tobytes()
    return _with_crc(Zstd(level=_ZSTD_LEVEL).encode(raw) if spec.codec == "zstd" else raw)


def _decode_chunk(spec: ArraySpec, stored: memoryview, out: NDArray[np.generic]) -> None:
    encoded = _without_crc(stored, f"a chunk of {spec.name}")
    if spec.codec == "none":
        if len(encoded) != out.nbytes:
            raise ArtefactMismatch(
                f"a chunk of {spec.name} has {len(encoded):,} bytes (expected {out.nbytes:,})"
            )
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(encoded, np.uint8)
        return
    _require_content_size(encoded, out.nbytes, spec.name)
    try:
        Zstd().decode(bytes(encoded), out=out)
    except (RuntimeError, ValueError) as error:
        raise ArtefactMismatch(f"a chunk of {spec.name} does not decompress: {error}") from error


def _require_content_size(frame: memoryview, expected: int, name: str) -> None:
    """Refuse a zstd frame that would unpack to another size, before any of it is unpacked.

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
        told = "an unknown number of" if found is None else f"{found:,}"
        raise ArtefactMismatch(
            f"a chunk of {name} claims to hold {told} bytes (expected {expected:,})"
        )


def _read_index(spec: ArraySpec, data: bytes, used: int) -> list[tuple[int, int]]:
    """Where the chunks lie that hold rows: one after the other, as `encode` wrote them."""
    index_bytes = 16 * spec.num_chunks
    if len(data) < index_bytes + CRC_BYTES:
        raise ArtefactMismatch(f"a shard of {spec.name} is shorter than its index")
    tail = memoryview(data)[len(data) - index_bytes - CRC_BYTES :]
    index = np.frombuffer(_without_crc(tail, f"the index of {spec.name}"), "<u8").reshape(-1, 2)
    end = 0
    places = []
    for offset, size in index[:used].tolist():
        if offset != end or offset + size > len(data) - index_bytes - CRC_BYTES:
            raise ArtefactMismatch(f"the index of a shard of {spec.name} points elsewhere")
        end = offset + size
        places.append((offset, end))
    if end != len(data) - index_bytes - CRC_BYTES or (index[used:] != _MISSING).any():
        raise ArtefactMismatch(f"the index of a shard of {spec.name} points elsewhere")
    return places


def _with_crc(data: bytes) -> tuple[bytes, bytes]:
    """The data and what follows it; apart, so that a shard is put together once."""
    crc: int = google_crc32c.value(data)
    return data, crc.to_bytes(CRC_BYTES, "little")


def _without_crc(stored: memoryview, what: str) -> memoryview:
    data, crc = stored[:-CRC_BYTES], stored[-CRC_BYTES:]
    if len(crc) < CRC_BYTES or google_crc32c.value(bytes(data)) != int.from_bytes(crc, "little"):
        raise ArtefactMismatch(f"{what} has another CRC-32C than was stored")
    return data
