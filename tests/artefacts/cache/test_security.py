"""Somebody else's files: nothing in them runs, is believed about sizes, or leads elsewhere.

Checkpoints with pickled code are in test_checkpoints.
"""

import json
import os
import pickle
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numcodecs.checksum32 import CRC32C

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import Joined
from pipeline.artefacts.cache.receipts import read_manifest, read_receipt, read_seal
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import check_cache
from pipeline.artefacts.records import stored_json
from pipeline.artefacts.selection import COLUMNS, SelectionIdentity, SelectionRecord, SelectionTable
from pipeline.artefacts.selection import write as write_selection
from pipeline.provenance import short
from tests.support.small_caches import SmallCache, edited, reseal, vouch
from tests.support.workspaces import contents, read_or_refusal


class Malice:
    """Pickles to a call that makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def marker(tmp_path: Path):
    """File that malicious code would create; checked after the test."""
    path = tmp_path / "created"
    yield path
    assert not path.exists()


def error_lines(small: SmallCache) -> tuple[str, list[str]]:
    """The lines in which opening or reading, and looking over, refuse a cache."""
    read = read_or_refusal(lambda: small.matches(TeacherCache.open(small.path)))
    assert isinstance(read, str)
    checked = read_or_refusal(lambda: check_cache(small.store, read_bytes=True))
    problems = [checked] if isinstance(checked, str) else checked.problems
    assert problems
    assert not any("\n" in problem for problem in problems)
    return read, problems


# Pickles in the store

V2_OBJECTS = {
    "zarr_format": 2,
    "shape": [1],
    "chunks": [1],
    "dtype": "|O",
    "compressor": None,
    "fill_value": None,
    "order": "C",
    "filters": [{"id": "pickle"}],
}


def test_the_pickle_of_these_tests_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "created")))
    assert (tmp_path / "created").is_dir()


@pytest.mark.parametrize("place", ["data.zarr", "data.zarr/logits", "data.zarr/evil", "."])
def test_a_store_of_pickles_next_to_the_numbers_is_never_read(small, marker, place):
    folder = small.path / place
    folder.mkdir(exist_ok=True)
    (folder / ".zarray").write_text(json.dumps(V2_OBJECTS))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / "0").write_bytes(pickle.dumps(Malice(marker)))
    assert small.matches(TeacherCache.open(small.path))
    checked = check_cache(small.store, read_bytes=True)
    assert checked.problems == []
    assert [Path(key).name for key in checked.unknown] == [".zarray", ".zgroup", "0"]


@pytest.mark.parametrize("place", ["data.zarr", "data.zarr/logits"])
def test_a_store_of_pickles_in_place_of_the_numbers_is_rejected(small, marker, place):
    folder = small.path / place
    (folder / "zarr.json").unlink()
    (folder / ".zarray").write_text(json.dumps(V2_OBJECTS))
    (folder / "0").write_bytes(pickle.dumps(Malice(marker)))
    read, _ = error_lines(small)
    assert f"{place}/zarr.json does not exist" in read


@pytest.mark.parametrize("crc", [False, True], ids=["plain", "with its CRC-32C"])
def test_a_pickle_in_place_of_a_shard_is_rejected_even_if_it_was_sealed(small, marker, crc):
    data = pickle.dumps([Malice(marker)] * 20)
    data = bytes(CRC32C().encode(data)) if crc else data
    (small.path / "data.zarr/logits/c/0/0/0").write_bytes(data)
    read, _ = error_lines(small)
    assert "has" in read
    vouch(small, "logits", 0, 0)
    line = read_or_refusal(lambda: TeacherCache.open(small.path).logits(0))
    assert f"{small.path}/data.zarr/logits/c/0/0/0 is damaged: " in str(line)


# Descriptions that would mislead other readers

LIES = {
    "objects": lambda meta: meta.update(data_type="object"),
    "another type": lambda meta: meta.update(data_type="float32"),
    "strings": lambda meta: meta.update(data_type={"name": "null_terminated_bytes"}),
    "a huge shape": lambda meta: meta.update(shape=[2, 1 << 40, 3]),
    "huge chunks": lambda meta: meta["chunk_grid"]["configuration"].update(
        chunk_shape=[1 << 20, 1 << 20, 1 << 20]
    ),
    "a transformer": lambda meta: meta.update(storage_transformers=[{"name": "evil"}]),
    "an unknown codec": lambda meta: meta["codecs"].append({"name": "evil"}),
    "a pickle codec": lambda meta: meta.update(codecs=[{"name": "numcodecs.pickle"}]),
    "another key": lambda meta: meta["chunk_key_encoding"]["configuration"].update(separator=".."),
    "another fill": lambda meta: meta.update(fill_value=0.0),
    "attributes": lambda meta: meta.update(attributes={"evil": 1}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_description_is_rejected(small, lie):
    path = small.path / "data.zarr/logits/zarr.json"
    content = json.loads(path.read_text())
    LIES[lie](content)
    path.write_bytes(stored_json(content))
    read, problems = error_lines(small)
    assert len(problems) == 1
    assert str(path) in read


def test_wrong_descriptions_are_found_from_the_text_alone(small):
    path = small.path / "data.zarr/logits/zarr.json"
    path.write_bytes(stored_json(json.loads(path.read_text())))
    assert small.matches(TeacherCache.open(small.path))


# Sizes

HUGE = {
    "samples": {"shape": {"num_samples": 1 << 31}},
    "classes": {"shape": {"num_classes": 1 << 20, "num_features": 1 << 20}},
    "logits": {"shape": {"num_classes": 1 << 20}, "layout": {"shard_rows": 1 << 20}},
    "views": {"shape": {"num_views": 1 << 17}},
    "shards": {
        "shape": {"num_samples": 1 << 26, "num_views": 1 << 17},
        "layout": {"shard_rows": 1},
    },
    "beyond integers": {"shape": {"num_samples": 1 << 70}},
    "none": {"shape": {"num_samples": 0}},
    "negative": {"shape": {"num_views": -1}},
    "a rowless shard": {"layout": {"shard_rows": 0}},
    "a fraction": {"shape": {"num_views": 2.5}},
}


@pytest.mark.parametrize("size", HUGE)
def test_a_manifest_that_asks_for_absurd_sizes_is_rejected_before_memory_is(small, size):
    def change(content):
        for part, fields in HUGE[size].items():
            content[part].update(fields)

    reseal(small.path, manifest=edited(small.path, change))
    tracemalloc.start()
    try:
        error_lines(small)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_shard_that_would_unpack_to_more_is_rejected_even_if_it_was_sealed(small):
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x03\x00\x10\x07"
    chunk = bytes(CRC32C().encode(bomb))
    index = np.array([0, len(chunk)], "<u8").tobytes()
    shard = chunk + bytes(CRC32C().encode(index))
    (small.path / "data.zarr/logits/c/0/0/0").write_bytes(shard)
    vouch(small, "logits", 0, 0)
    line = read_or_refusal(lambda: TeacherCache.open(small.path).logits(0))
    assert "claims to hold 1,099,511,627,776 bytes (expected 24)" in str(line)


@pytest.mark.parametrize(
    "key", ["manifest.json", "data.zarr/zarr.json", "data.zarr/logits/c/0/0/0", "sealed.json"]
)
def test_an_object_of_a_gigabyte_is_rejected_by_its_size(small, key):
    os.truncate(small.path / key, 1 << 30)  # takes no room on the disk
    tracemalloc.start()
    try:
        read, _ = error_lines(small)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"{small.path}/{key}" in read
    assert peak < 8 << 20


def test_a_receipt_of_100_mb_is_rejected_by_its_size(small):
    path = small.path / "receipts/logits/0.0.json"
    os.truncate(path, 100_000_000)
    assert "is too large: 100000000 bytes" in str(
        read_or_refusal(lambda: read_receipt(small.store, "receipts/logits/0.0.json"))
    )
    assert len(check_cache(small.store, read_bytes=True).problems) == 1


# JSON

BOMBS = {
    "deep lists": b"[" * 400_000,
    "deep objects": b'{"a":' * 100_000,
    "closed lists": b"[" * 100_000 + b"]" * 100_000,
    "a long number": b"1" * 500_000,
    "a large exponent": b"1e999999999",
    "no text": b"\xff\xfe\x00",
    "not a number": b"NaN",
    "nothing": b"null",
    "a list": b"[]",
    "no fields": b"{}",
    "half an escape": b'"\\ud800"',
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("key", ["manifest.json", "sealed.json"])
def test_json_that_is_not_a_record_is_rejected_in_one_line(small, key, bomb):
    (small.path / key).write_bytes(BOMBS[bomb])
    assert f"{small.path}/{key}" in error_lines(small)[0]
    read = read_manifest if key == "manifest.json" else read_seal
    assert isinstance(read_or_refusal(lambda: read(small.store)), str)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_receipt_that_is_not_a_record_is_rejected_in_one_line(small, bomb):
    (small.path / "receipts/logits/0.0.json").write_bytes(BOMBS[bomb][:60_000])
    assert len(check_cache(small.store, read_bytes=True).problems) == 1


def test_a_name_in_a_manifest_cannot_break_the_line(small):
    change = {"evil\nname\x1b[31m": 1}
    reseal(small.path, manifest=edited(small.path, lambda content: content.update(change)))
    line = read_or_refusal(lambda: TeacherCache.open(small.path))
    assert "\x1b" not in str(line)


# Names


@pytest.mark.parametrize(
    "name",
    [
        "receipts/../../outside.json",
        "/etc/passwd",
        "receipts/logits/../../../outside.json",
        "receipts/logits/0.0.json/../../x",
        "receipts\\logits\\0.0.json",
        "",
    ],
)
@pytest.mark.parametrize("instead", [True, False], ids=["in place of one", "as one more"])
def test_a_seal_that_names_other_receipts_is_rejected(small, name, instead):
    receipts = dict(TeacherCache.open(small.path).seal.receipts)
    receipts[name] = receipts["receipts/logits/0.0.json"]
    if instead:
        del receipts["receipts/logits/0.0.json"]
    reseal(small.path, receipts=receipts)
    assert "is sealed with" in error_lines(small)[0]


@pytest.mark.parametrize(
    "key",
    [
        "manifest.json",
        "sealed.json",
        "data.zarr",
        "data.zarr/zarr.json",
        "data.zarr/logits",
        "data.zarr/logits/c/0",
        "data.zarr/logits/c/0/0/0",
        "data.zarr/labels/c/0",
    ],
)
def test_a_link_out_of_the_cache_is_rejected_though_the_numbers_are_right(small, tmp_path, key):
    outside = tmp_path / "outside"
    (small.path / key).rename(outside)
    (small.path / key).symlink_to(outside)
    read, problems = error_lines(small)
    assert str(small.path) in read
    assert all("outside" not in problem for problem in problems)


@pytest.mark.parametrize("key", ["receipts", "receipts/logits", "receipts/logits/0.0.json"])
def test_a_link_in_place_of_receipts_is_found(small, tmp_path, key):
    outside = tmp_path / "outside"
    (small.path / key).rename(outside)
    (small.path / key).symlink_to(outside)
    assert check_cache(small.store, read_bytes=True).problems


def test_the_root_alone_may_be_a_link(small, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(small.path)
    assert small.matches(TeacherCache.open(link))


@pytest.mark.parametrize("key", ["manifest.json", "data.zarr/logits/c/0/0/0"])
def test_a_pipe_in_place_of_an_object_is_rejected_at_once(small, key):
    (small.path / key).unlink()
    os.mkfifo(small.path / key)
    error_lines(small)


# Parquet


def selection_record() -> SelectionRecord:
    identity = SelectionIdentity(
        cache="0" * 64,
        held_out="1" * 64,
        soft_labels="2" * 64,
        strategy="random",
        score=None,
        fraction=0.5,
        threshold=None,
        standard_errors=None,
        class_quota=None,
        beta=None,
        seed=0,
        scores=None,
    )
    return SelectionRecord(
        id=identity.id,
        identity=identity,
        num_selected=2,
        num_candidates=3,
        num_wrong=0,
        num_wrong_selected=0,
        wrong_row_auc=None,
        predicted_gain=None,
        target_in_sample=False,
        num_not_cached=0,
        accepted=[],
        scores=None,
        versions={},
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {name: np.zeros(3, kind.to_pandas_dtype()) for name, kind in COLUMNS.items()}
    columns |= {"sample_index": np.arange(3), "sample_key": np.array(["0" * 32] * 3, object)}
    columns |= {"reason": np.array([""] * 3, object)}
    path = tmp_path / "table.parquet"
    write_selection(path, record=selection_record(), columns=columns)
    assert len(SelectionTable.open(path).frame) == 3
    return path


def rewritten(path: Path, name: str, field: pa.Field, values: pa.Array, **metadata) -> Path:
    """The table with another column and more metadata."""
    stored = pq.read_table(path)
    content = stored.schema.metadata | {key.encode(): value for key, value in metadata.items()}
    if name in stored.column_names:
        stored = stored.drop_columns([name])
    changed = stored.append_column(field, values).replace_schema_metadata(content)
    pq.write_table(changed, path)
    return path


PANDAS = {"index_columns": [], "column_indexes": [], "pandas_version": "2", "columns": []}


@pytest.mark.parametrize("name", ["sample_key", "label", "selected", "evil"])
def test_a_column_of_pickles_is_bytes_or_rejected(table, marker, name):
    data = [pickle.dumps(Malice(marker))] * 3
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": data[0],
    }
    column = {"name": name, "field_name": name, "pandas_type": "object", "numpy_type": "object"}
    content = PANDAS | {"columns": [column | {"metadata": {"encoding": "pickle"}}]}
    rewritten(
        table,
        name,
        pa.field(name, pa.binary(), metadata=extension),
        pa.array(data, pa.binary()),
        pandas=json.dumps(content).encode(),
    )
    read = read_or_refusal(lambda: SelectionTable.open(table))
    if name == "evil":
        assert read.frame["evil"].tolist() == data
    else:
        assert f"has a `{name}` column" in read


WRONG_METADATA = {
    "a pickle": lambda marker: pickle.dumps(Malice(marker)),
    "no text": lambda _: b"\xff\xfe",
    "a list": lambda _: b"[]",
    "no fields": lambda _: b"{}",
    "a version": lambda _: json.dumps(
        selection_record().model_dump(mode="json") | {"version": 99}
    ).encode(),
    "another id": lambda _: json.dumps(
        selection_record().model_dump(mode="json") | {"id": "f" * 64}
    ).encode(),
    "more": lambda _: json.dumps(selection_record().model_dump(mode="json") | {"more": 1}).encode(),
}


@pytest.mark.parametrize("what", WRONG_METADATA)
def test_metadata_that_is_not_a_record_is_rejected(table, marker, what):
    stored = pq.read_table(table)
    content = stored.schema.metadata | {b"heartcut": WRONG_METADATA[what](marker)}
    pq.write_table(stored.replace_schema_metadata(content), table)
    assert str(read_or_refusal(lambda: SelectionTable.open(table))).startswith(str(table))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        json.dumps(PANDAS | {"index_columns": ["sample_index"]}).encode(),
    ],
)
def test_metadata_of_pandas_is_not_trusted(table, content):
    stored = pq.read_table(table)
    metadata = stored.schema.metadata | {b"pandas": content}
    pq.write_table(stored.replace_schema_metadata(metadata), table)
    assert len(SelectionTable.open(table).frame) == 3


def test_a_pickle_under_a_parquet_name_is_rejected(tmp_path, marker):
    path = tmp_path / "table.parquet"
    for data in (pickle.dumps(Malice(marker)), b"PAR1" + pickle.dumps(Malice(marker)) + b"PAR1"):
        path.write_bytes(data)
        line = read_or_refusal(lambda: SelectionTable.open(path))
        assert "is not a readable parquet file" in str(line)


# Local copies


def test_pickled_objects_in_place_of_a_local_copy_are_not_loaded(small, tmp_path, marker):
    cache = TeacherCache.open(small.path)
    joined = Joined(rows=np.arange(7)[::-1].copy(), accepted=())

    def reopened() -> HydratedCache:
        return HydratedCache(cache=cache, joined=joined, folder=tmp_path / "copies")

    assert np.array_equal(reopened().features(0), cache.features(0)[::-1])
    (path,) = (tmp_path / "copies").rglob("features.0.*.npy")
    assert path.parent.name.startswith(short(cache.root))
    values = np.empty(7, object)
    values[:] = [Malice(marker)] * 7
    np.save(path, values, allow_pickle=True)
    data, record = path.read_bytes(), path.with_suffix(".json")
    content = contents(record)
    assert np.array_equal(reopened().features(0), cache.features(0)[::-1])  # made again
    path.write_bytes(data)
    content |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    record.write_text(json.dumps(content))  # now it is vouched for
    assert np.array_equal(reopened().features(0), cache.features(0)[::-1])
