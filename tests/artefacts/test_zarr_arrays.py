"""Our Zarr v3 arrays against zarr-python, in both directions; damage is refused."""

import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pipeline.artefacts.cache.receipts import extremes
from pipeline.artefacts.cache.teacher_cache import top_and_class
from pipeline.artefacts.zarr_arrays import ArraySpec, array_metadata, decode, group_metadata
from pipeline.artefacts.zarr_store import encode
from pipeline.errors import ArtefactMismatch
from tests.support.workspaces import read_or_refusal

DTYPES = ["float16", "float32", "uint16", "int32", "uint8"]
CODECS = ["zstd", "none"]
SHARDS = [1, 2, 3, 5, 8, 4096, 8192, 12_288]
"""From 8192 on a shard has several chunks."""


def spec_of(shape, dtype="float16", *, shard_rows=None, codec="zstd") -> ArraySpec:
    names = ("view", "sample", "class", "sort")[: len(shape)]
    return ArraySpec(
        name="a", shape=shape, dtype=dtype, dimensions=names, shard_rows=shard_rows, codec=codec
    )


def values_of(spec: ArraySpec, *, seed=0):
    """Numbers of every size that the type has, compressible ones among them."""
    draws = np.random.default_rng(seed)
    if spec.dtype.startswith("float"):
        values = draws.normal(size=spec.shape).astype(spec.dtype)
        values[draws.random(spec.shape) < 0.2] = 0
        return values
    limits = np.iinfo(spec.dtype)
    return draws.integers(limits.min, limits.max, spec.shape, dtype=spec.dtype, endpoint=True)


def parts_of(spec: ArraySpec) -> Iterator[tuple[str, tuple[int, slice], int | None]]:
    """Key, place in the array and number of rows of every object."""
    if spec.shard_rows is None:
        yield spec.key(), (slice(None),), None
        return
    views, rows = spec.shape[:2]
    for view in range(views):
        for shard, start in enumerate(range(0, rows, spec.shard_rows)):
            stop = min(start + spec.shard_rows, rows)
            yield spec.key(view, shard), (view, slice(start, stop)), stop - start


def encoded(spec: ArraySpec, values) -> dict[str, bytes]:
    """All objects of an array, as we write them."""
    return {key: encode(spec, values[place]) for key, place, _ in parts_of(spec)}


def read_by_zarr(spec: ArraySpec, objects: dict[str, bytes]):
    buffer = default_buffer_prototype().buffer
    files = objects | {
        "zarr.json": group_metadata({"shown": 1}),
        "a/zarr.json": array_metadata(spec),
    }
    store = MemoryStore({key: buffer.from_bytes(data) for key, data in files.items()})
    group = zarr.open_group(store, mode="r", zarr_format=3)
    assert group.attrs["shown"] == 1
    assert group["a"].metadata.dimension_names == spec.dimensions
    return group["a"][:]


def written_by_zarr(spec: ArraySpec, values) -> dict[str, bytes]:
    """Every file of the array, as zarr-python writes it."""
    store = MemoryStore()
    zarr.open_group(store, mode="w", zarr_format=3)
    chunks, shards = spec.shape, None
    if spec.shard_rows is not None:
        chunks = (1, spec.chunk_rows, *spec.shape[2:])
        shards = (1, spec.shard_rows, *spec.shape[2:])
    is_float = spec.dtype.startswith("float")
    zstd = [ZstdCodec(level=1, checksum=False)] if spec.codec == "zstd" else []
    array = zarr.create_array(
        store,
        name="a",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=chunks,
        shards=shards,
        filters=None,
        serializer=BytesCodec() if spec.dtype != "uint8" else BytesCodec(endian=None),
        compressors=[*zstd, Crc32cCodec()],
        fill_value=np.nan if is_float else 0,
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    array[:] = values
    prototype = default_buffer_prototype()
    keys = [key for key in store._store_dict if key.startswith("a/")]
    return {key: sync(store.get(key, prototype)).to_bytes() for key in keys}


def assert_agrees_with_zarr(spec: ArraySpec) -> None:
    values = values_of(spec)
    ours, theirs = encoded(spec, values), written_by_zarr(spec, values)
    np.testing.assert_array_equal(read_by_zarr(spec, ours), values)
    described = json.loads(theirs.pop("a/zarr.json"))
    assert ours.keys() == theirs.keys()
    for key, place, num_rows in parts_of(spec):
        for data in (ours[key], theirs[key]):
            read = decode(spec, data, num_rows)
            assert read.dtype == np.dtype(spec.dtype)
            np.testing.assert_array_equal(read, values[place])
        assert ours[key] == theirs[key], key
        assert len(ours[key]) <= spec.max_stored_bytes
    unlike = {"dimension_names", "attributes"}
    own = json.loads(array_metadata(spec))
    assert {k: v for k, v in own.items() if k not in unlike} == {
        k: v for k, v in described.items() if k not in unlike
    }


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "shard_rows"),
    [
        ((2, 7), 3),
        ((2, 7, 3), 4),
        ((1, 8, 2), 4),
        ((2, 8192 + 4096 + 5), 8192),
        ((1, 11, 65_536), 8),
        ((5,), None),
        ((5, 16), None),
    ],
    ids=["rank 2", "rank 3", "full shards", "many chunks", "wide rows", "one chunk", "a table"],
)
def test_zarr_reads_what_we_write_and_we_what_zarr_writes(shape, shard_rows, dtype, codec):
    assert_agrees_with_zarr(spec_of(shape, dtype, shard_rows=shard_rows, codec=codec))


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    dtype, codec = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(CODECS))
    if draw(st.booleans()):
        shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
        return spec_of(tuple(shape), dtype, codec=codec)
    shard_rows = draw(st.sampled_from(SHARDS))
    num_rows = draw(st.integers(1, 3 * shard_rows))
    width = draw(st.lists(st.integers(1, 3), max_size=1))
    shape = (draw(st.integers(1, 2)), num_rows, *width)
    if shard_rows < 8:
        shape = (*shape[:2], *(w * 7 for w in shape[2:]))
    return spec_of(shape, dtype, shard_rows=shard_rows, codec=codec)


@given(spec=specs())
def test_any_shape_agrees_with_zarr(spec):
    assert_agrees_with_zarr(spec)


def test_special_numbers_keep_their_bits():
    spec = spec_of((1, 6), "float16", shard_rows=4)
    bits = np.array([0x7E01, 0xFE02, 0x7C00, 0xFC00, 0x8000, 0x0001], "<u2")
    for rows in (bits[:4], bits[4:]):
        data = encode(spec, rows.view("<f2"))
        again = decode(spec, data, len(rows))
        np.testing.assert_array_equal(again.view("<u2"), rows)


def test_rows_of_another_byte_order_or_memory_order_are_stored_alike():
    spec = spec_of((1, 4, 3), "float32", shard_rows=4)
    rows = values_of(spec)[0]
    stored = encode(spec, rows)
    assert encode(spec, rows.astype(">f4")) == stored
    assert encode(spec, np.asfortranarray(rows)) == stored


# Damage

DAMAGED = [
    spec_of((1, 5, 3), shard_rows=4),
    spec_of((1, 5, 3), shard_rows=4, codec="none"),
    spec_of((1, 3), "uint16", shard_rows=8),
    spec_of((4,), "int32"),
    spec_of((3, 2), "float32"),
    spec_of((2, 5), "uint8", codec="none"),
]
each_damaged = pytest.mark.parametrize("spec", DAMAGED, ids=range(len(DAMAGED)))


def first_object(spec: ArraySpec):
    """Values, bytes and number of rows of the first object of an array."""
    _, place, num_rows = next(parts_of(spec))
    values = values_of(spec)[place]
    return values, encode(spec, values), num_rows


def outcome(spec: ArraySpec, data: bytes, num_rows: int | None):
    return read_or_refusal(lambda: decode(spec, data, num_rows))


@each_damaged
def test_every_changed_bit_is_rejected(spec):
    _, data, num_rows = first_object(spec)
    for offset in range(len(data)):
        for mask in (0xFF, *(1 << bit for bit in range(8))):
            changed = bytearray(data)
            changed[offset] ^= mask
            assert isinstance(outcome(spec, bytes(changed), num_rows), str), (offset, mask)


@each_damaged
def test_every_truncation_and_every_extension_is_rejected(spec):
    _, data, num_rows = first_object(spec)
    for length in range(len(data)):
        assert isinstance(outcome(spec, data[:length], num_rows), str), length
        assert isinstance(outcome(spec, data[length + 1 :], num_rows), str), length
    for extra in (b"\0", b"\xff" * 16, data):
        assert isinstance(outcome(spec, data + extra, num_rows), str)
        assert isinstance(outcome(spec, extra + data, num_rows), str)


def with_crc(data: bytes) -> bytes:
    return bytes(CRC32C(location="end").encode(data))


def frame(claimed: int | None, blocks: bytes) -> bytes:
    """A zstd frame that claims to hold so many bytes (RFC 8878); None: no size."""
    if claimed is None:
        return b"\x28\xb5\x2f\xfd\x00\x58" + blocks  # a window of 2 MiB
    return b"\x28\xb5\x2f\xfd\xe0" + claimed.to_bytes(8, "little") + blocks


def run(size: int, *, last: bool) -> bytes:
    """A block of ``size`` bytes 7, in four."""
    return (last | 1 << 1 | size << 3).to_bytes(3, "little") + b"\x07"


BOMB = run(1 << 17, last=False) * 511 + run(1 << 17, last=True)
"""64 MiB in 2 KiB."""


def test_the_frames_of_these_tests_are_real():
    held = Zstd().decode(frame(1 << 26, BOMB))
    assert (len(held), held[:1]) == (1 << 26, b"\x07")
    spec = spec_of((40,), "uint8")
    read = decode(spec, with_crc(frame(40, run(40, last=True))), None)
    assert read.tolist() == [7] * 40


@pytest.mark.parametrize(
    ("claimed", "shown"),
    [
        (1 << 26, "67,108,864"),
        (1 << 40, "1,099,511,627,776"),
        ((1 << 64) - 1, "18,446,744,073,709,551,615"),
        ((1 << 64) - 2, "18,446,744,073,709,551,614"),
        (39, "39"),
        (0, "0"),
        (None, "an unknown number of"),
    ],
)
@pytest.mark.parametrize("shard_rows", [None, 40], ids=["one chunk", "a shard"])
def test_a_frame_that_claims_another_size_is_rejected_before_it_is_unpacked(
    claimed, shown, shard_rows
):
    shape = (40,) if shard_rows is None else (1, 40)
    spec, data = spec_of(shape, "uint8", shard_rows=shard_rows), with_crc(frame(claimed, BOMB))
    if shard_rows is not None:
        data += with_crc(np.array([0, len(data)], "<u8").tobytes())
    tracemalloc.start()
    try:
        line = outcome(spec, data, 40)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line == f"a chunk of a claims to hold {shown} bytes (expected 40)"
    assert peak < 1 << 18


@pytest.mark.parametrize(
    "blocks",
    [BOMB, run(39, last=True), run(41, last=True), run(40, last=False), b"", b"\x01\x00\x00"],
    ids=["far more", "one less", "one more", "no end", "nothing", "an empty block"],
)
def test_a_frame_that_holds_another_size_than_it_claims_is_rejected(blocks):
    line = outcome(spec_of((40,), "uint8"), with_crc(frame(40, blocks)), None)
    assert str(line).startswith("a chunk of a does not decompress: ")


@pytest.mark.parametrize("second", [run(1, last=True), BOMB], ids=["one byte", "a bomb"])
def test_a_second_frame_is_rejected(second):
    frames = frame(40, run(40, last=True)) + frame(len(second), second)
    assert isinstance(outcome(spec_of((40,), "uint8"), with_crc(frames), None), str)


@pytest.mark.parametrize("data", [b"", b"\x28", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xe0\x01"])
def test_what_is_shorter_than_a_frame_header_is_rejected(data):
    assert isinstance(outcome(spec_of((40,), "uint8"), with_crc(data), None), str)


CHUNK = 4096
MISSING = (1 << 64) - 1


def with_index(spec: ArraySpec, index: list[tuple[int, int]], data: bytes) -> bytes:
    assert len(index) == spec.num_chunks
    return data + with_crc(np.array(index, "<u8").tobytes())


@pytest.mark.parametrize(
    "index",
    [
        [(0, 4100), (0, 4100), (MISSING, MISSING)],
        [(4100, 4100), (0, 4100), (MISSING, MISSING)],
        [(0, 4100), (4099, 4101), (MISSING, MISSING)],
        [(0, 4100), (4101, 4099), (MISSING, MISSING)],
        [(0, 4100), (4100, 4099), (MISSING, MISSING)],
        [(0, 4100), (4100, 4101), (MISSING, MISSING)],
        [(0, 4100), (4100, 1 << 40), (MISSING, MISSING)],
        [(0, 4100), (4100, MISSING), (MISSING, MISSING)],
        [(0, 4100), (MISSING, MISSING), (MISSING, MISSING)],
        [(0, 4100), (1 << 63, 4100), (MISSING, MISSING)],
        [(MISSING, 1), (4100, 4100), (MISSING, MISSING)],
        [(0, 4100), (4100, 4100), (0, 4100)],
        [(0, 4100), (4100, 4100), (8200, 0)],
        [(0, 4100), (4100, 4100), (MISSING, 0)],
        [(0, 8200), (8200, 0), (MISSING, MISSING)],
    ],
)
def test_an_index_that_points_elsewhere_is_rejected(index):
    spec = spec_of((1, 2 * CHUNK), "uint8", shard_rows=3 * CHUNK, codec="none")
    values = values_of(spec)[0]
    chunks = b"".join(with_crc(part.tobytes()) for part in np.split(values, 2))
    right = [(0, 4100), (4100, 4100), (MISSING, MISSING)]
    assert with_index(spec, right, chunks) == encode(spec, values)
    with pytest.raises(ArtefactMismatch, match=r"points elsewhere|has 8,196 bytes"):
        decode(spec, with_index(spec, index, chunks), 2 * CHUNK)


def test_bytes_that_no_chunk_holds_are_rejected():
    spec = spec_of((1, 4), "uint8", shard_rows=4, codec="none")
    chunk = with_crc(b"\1\2\3\4")
    assert with_index(spec, [(0, 8)], chunk) == encode(spec, np.arange(1, 5, dtype=np.uint8))
    for data, place in [(chunk + b"\0", (0, 8)), (b"\0" + chunk, (1, 8)), (chunk, (0, 0))]:
        with pytest.raises(ArtefactMismatch, match="points elsewhere"):
            decode(spec, with_index(spec, [place], data), 4)


def test_a_chunk_of_another_size_is_rejected():
    spec = spec_of((1, 4), "uint8", shard_rows=4, codec="none")
    for size in (0, 3, 5, 1 << 16):
        chunk = with_crc(bytes(size))
        with pytest.raises(ArtefactMismatch, match=rf"has {size:,} bytes \(expected 4\)"):
            decode(spec, with_index(spec, [(0, len(chunk))], chunk), 4)


def test_a_shard_of_fewer_or_more_rows_is_rejected():
    spec = spec_of((1, 3 * CHUNK), "uint8", shard_rows=3 * CHUNK)
    data = encode(spec, values_of(spec)[0][: 2 * CHUNK])
    for num_rows in (1, CHUNK, 2 * CHUNK + 1, 3 * CHUNK):
        with pytest.raises(ArtefactMismatch):
            decode(spec, data, num_rows)


# Facts of numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_are_the_smallest_and_the_largest(dtype):
    for seed in range(5):
        values = values_of(spec_of((1, 31, 3), dtype), seed=seed)
        assert extremes(values) == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_extremes_are_not_finite_where_a_value_is_not(dtype, value):
    for place in (0, 17, 92):
        values = values_of(spec_of((93,), dtype))
        values[place] = value
        assert not np.isfinite(extremes(values)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_equal_logits_the_first_class_is_the_top(dtype):
    logits = np.random.default_rng(0).integers(-2, 3, (200, 40)).astype(dtype)
    top, classes = top_and_class(logits)
    assert np.array_equal(classes, logits.argmax(axis=1))
    assert np.array_equal(top, logits.max(axis=1))
    assert (top.dtype, classes.dtype) == (logits.dtype, np.int64)
