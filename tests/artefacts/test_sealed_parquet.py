"""Seals: every byte of a table is checked, and a table that another program wrote has none."""

import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artefacts import sealed_parquet
from pipeline.artefacts.selection import SelectionTable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from tests.support.golden import GOLDEN

NUM = 1000
TABLE = pa.table(
    {
        "number": np.arange(NUM) * 1.5,
        "flag": np.arange(NUM) % 3 == 0,
        "text": [f"row {n % 7}" for n in range(NUM)],
    }
).replace_schema_metadata({"heartcut": json.dumps({"a": 1})})
FIRST_PAGE = 4 + len("heartcut seal 1\n") + 2 * 65


@pytest.fixture
def path(tmp_path):
    sealed_parquet.write(tmp_path / "x.parquet", TABLE)
    return tmp_path / "x.parquet"


def read(path, *, whole: bool = True) -> pa.Table:
    opened = sealed_parquet.opened(path, whole=whole, made_by="make x", remedy="Make it again.")
    with opened as file:
        return file.read() if whole else file.schema_arrow.empty_table()


def flip(path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sealed_table_reads_back_here_and_in_other_programs(path):
    assert read(path).equals(TABLE, check_metadata=True)
    assert pq.read_table(path).equals(TABLE, check_metadata=True)
    pd.testing.assert_frame_equal(pd.read_parquet(path), TABLE.to_pandas())
    assert pl.read_parquet(path).to_arrow().cast(TABLE.schema).equals(TABLE)
    assert pl.read_parquet_metadata(path)["heartcut"] == '{"a": 1}'
    query = "SELECT sum(number), count(*) FROM '{}' WHERE flag"
    expected = (TABLE.to_pandas().query("flag")["number"].sum(), 334)
    assert duckdb.connect().execute(query.format(path)).fetchone() == expected


def test_the_seal_is_a_line_of_text_before_the_first_page(path):
    lines = path.read_bytes()[:FIRST_PAGE].decode().split("\n")
    assert lines[0] == "PAR1heartcut seal 1"
    assert [len(line) for line in lines[1:]] == [64, 64, 0]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset == FIRST_PAGE


def test_every_byte_after_the_seal_is_checked(path):
    num_bytes = path.stat().st_size
    for offset in range(FIRST_PAGE, num_bytes):
        flip(path, offset)
        with pytest.raises(ArtefactMismatch, match=r"x\.parquet .*Make it again\.") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        flip(path, offset)
    assert read(path).equals(TABLE)


def test_the_record_is_read_without_reading_the_pages(path):
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8
    flip(path, FIRST_PAGE + 3)
    assert read(path, whole=False).schema.equals(TABLE.schema, check_metadata=True)
    flip(path, path.stat().st_size - footer)
    with pytest.raises(ArtefactMismatch, match=r"its footer has digest \w+ \(expected \w+\)"):
        read(path, whole=False)


def test_a_program_that_writes_the_table_again_leaves_out_the_seal(path):
    """pyarrow keeps all metadata, so a digest there would stay and reject the edited table."""
    stored = pq.read_table(path)
    edited = stored.set_column(1, "flag", pa.array(np.ones(NUM, dtype=bool)))
    pq.write_table(edited, path)
    assert b"heartcut seal" not in path.read_bytes()
    assert read(path).equals(edited, check_metadata=True)


def test_an_empty_table_is_sealed_too(tmp_path):
    sealed_parquet.write(tmp_path / "x.parquet", TABLE.slice(0, 0))
    assert read(tmp_path / "x.parquet").num_rows == 0
    flip(tmp_path / "x.parquet", FIRST_PAGE + 5)
    with pytest.raises(ArtefactMismatch):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("keep", [0, 3, 100, FIRST_PAGE, 2000, -1])
def test_a_truncated_table_is_rejected_in_one_line(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactMismatch, match="is not a readable parquet file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_table_names_its_command(tmp_path):
    with pytest.raises(ArtefactNotFound, match="`make x`"):
        read(tmp_path / "x.parquet")


def test_a_selection_table_with_two_records_that_differ_is_rejected(tmp_path):
    """In tables of earlier versions, which have no seal, the record stands twice."""
    stored = pq.read_table(GOLDEN / "selection-v3" / "table.parquet")
    own = stored.schema.metadata[b"heartcut"]
    changed = own.replace(b'"num_selected":', b'"num_selected":1')
    assert changed != own
    metadata = {**stored.schema.metadata, b"heartcut": changed}
    pq.write_table(stored.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    with pytest.raises(ArtefactMismatch, match=r"has two records that differ"):
        SelectionTable.open(tmp_path / "x.parquet")
