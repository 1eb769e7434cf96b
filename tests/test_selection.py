"""The selection table: readable anywhere, editable, and refused where it is not this data's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import COLUMNS, SelectionIdentity, SelectionTable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from stages import select, train_student
from stages.config_file import with_overrides
from stages.configs import Config
from tests.workspaces import flipped, read_or_refusal


@pytest.fixture
def table(digits: Config) -> SelectionTable:
    return select.execute(digits)


@pytest.fixture
def stored(table: SelectionTable) -> pa.Table:
    return pq.read_table(table.path)


def saved(stored: pa.Table, tmp_path: Path) -> Path:
    path = tmp_path / "mine.parquet"
    pq.write_table(stored, path)
    return path


def with_column(stored: pa.Table, name: str, values: object) -> pa.Table:
    """One column replaced; the metadata stays, as docs/selection.md asks."""
    metadata = stored.schema.metadata
    changed = stored.set_column(stored.column_names.index(name), name, pa.array(values))
    return changed.replace_schema_metadata(metadata)


def test_columns_have_the_documented_names_and_types(stored):
    assert {field.name: field.type for field in stored.schema} == COLUMNS


def test_pandas_reads_it_without_knowing_it(table):
    frame = pd.read_parquet(table.path)
    pd.testing.assert_frame_equal(frame, table.frame)
    assert frame["selected"].dtype == bool
    assert len(frame) == table.record.num_candidates + frame["held_out"].sum()


def test_a_table_belongs_to_the_samples_that_it_was_made_of(table, digits):
    samples = Dataset.open(digits.data_folder).train.samples
    table.require_samples(samples.keys, samples.labels)


def test_an_edited_selection_is_accepted_and_is_another_run(table, stored, digits, tmp_path):
    selected = table.selected.copy()
    selected[:40] = ~selected[:40]
    path = saved(with_column(stored, "selected", selected), tmp_path)
    assert np.array_equal(SelectionTable.open(path).selected, selected)
    changes = [
        f"workspace={tmp_path / 'work'}",
        f"train_student.selection={path}",
        f"train_student.soft_labels={next(digits.selections_folder.glob('*.soft'))}",
    ]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(digits.data_folder)
    edited = train_student.execute(with_overrides(digits, changes))
    changes[1] = f"train_student.selection={table.path}"
    original = train_student.execute(with_overrides(digits, changes))
    assert edited.result.id != original.result.id
    assert edited.result.inputs == original.result.inputs
    training = Dataset.open(digits.data_folder).training
    assert edited.result.num_distilled == selected[training].sum()


def test_a_table_from_another_writer_is_accepted(stored, tmp_path):
    wide = stored.schema.set(
        stored.column_names.index("sample_key"), pa.field("sample_key", pa.large_string())
    ).set(stored.column_names.index("label"), pa.field("label", pa.int64()))
    table = SelectionTable.open(saved(stored.cast(wide), tmp_path))
    assert table.labels.dtype == np.int64


def test_fewer_rows_are_refused_with_both_counts(stored, digits, tmp_path):
    samples = Dataset.open(digits.data_folder).train.samples
    short = SelectionTable.open(saved(stored.slice(0, 100), tmp_path))
    with pytest.raises(ArtefactMismatch, match=rf"has 100 rows \(expected {len(samples)}"):
        short.require_samples(samples.keys, samples.labels)


@pytest.mark.parametrize("name", ["sample_key", "label"])
def test_other_samples_are_refused_with_the_first_that_differs(stored, digits, tmp_path, name):
    samples = Dataset.open(digits.data_folder).train.samples
    values = stored.column(name).to_pylist()
    values[7] = "0" * 32 if name == "sample_key" else (values[7] + 1) % 10
    other = SelectionTable.open(saved(with_column(stored, name, values), tmp_path))
    with pytest.raises(ArtefactMismatch, match=r"1 rows differ in key or label.*sample 7"):
        other.require_samples(samples.keys, samples.labels)


def reordered(stored: pa.Table) -> pa.Table:
    return stored.take(pa.array(np.arange(len(stored))[::-1]))


def with_a_null(stored: pa.Table, name: str) -> pa.Table:
    return with_column(stored, name, [None, *stored.column(name).to_pylist()[1:]])


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (reordered, "one row per sample in the order of sample_index"),
        (lambda t: t.drop_columns(["beta", "rank"]), "lacks the columns beta, rank"),
        (lambda t: with_a_null(t, "selected"), "`selected` column of bool with 1 missing"),
        (lambda t: with_a_null(t, "label"), "`label` column of int64 with 1 missing"),
        (lambda t: with_a_null(t, "sample_key"), "`sample_key` column of string with 1 missing"),
        (lambda t: with_a_null(t, "sample_index"), "`sample_index` column of int64 with 1 miss"),
        (lambda t: with_column(t, "selected", [1] * len(t)), r"of int64 .*\(expected bool"),
        (lambda t: t.replace_schema_metadata(None), "metadata has no `heartcut` entry"),
        (lambda t: t.replace_schema_metadata({"heartcut": "{"}), "has damaged metadata"),
        (lambda t: t.replace_schema_metadata({"heartcut": "{}"}), "does not follow its format: id"),
    ],
)
def test_an_edit_that_breaks_the_table_is_refused_in_one_line(stored, tmp_path, edit, told):
    path = saved(edit(stored), tmp_path)
    with pytest.raises(ArtefactMismatch, match=told) as caught:
        SelectionTable.open(path)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_give_the_id_are_refused(stored, tmp_path):
    text = stored.schema.metadata[b"heartcut"].replace(b'"seed":0', b'"seed":1')
    path = saved(stored.replace_schema_metadata({b"heartcut": text}), tmp_path)
    with pytest.raises(ArtefactMismatch, match="has an id that its settings do not give"):
        SelectionTable.open(path)


def test_a_flipped_byte_is_refused_or_changes_nothing_that_training_reads(table, tmp_path):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(table.path.read_bytes())
    num_refused = 0
    for offset in range(0, path.stat().st_size, 61):
        with flipped(path, offset):
            read = read_or_refusal(lambda: SelectionTable.open(path))
        if isinstance(read, str):
            num_refused += 1
        else:
            assert read.id == table.id, offset
            pd.testing.assert_frame_equal(read.frame, table.frame)
    assert num_refused > 100


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all", bytes(4096)])
def test_what_is_no_parquet_file_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(ArtefactMismatch, match="is not a readable parquet file") as caught:
        SelectionTable.open(path)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_told_how_to_make(tmp_path):
    with pytest.raises(ArtefactNotFound, match="Make it with `heartcut select`"):
        SelectionTable.open(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "b"},
        {"held_out": "b"},
        {"soft_labels": "b"},
        {"strategy": "correct"},
        {"fraction": 0.5},
        {"class_quota": 0.1},
        {"seed": 1},
        {"influence": {"l2": 1e-3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_identity_changes_the_id(table, change):
    identity = table.record.identity
    changed = SelectionIdentity.model_validate(identity.model_dump() | change)
    assert changed.id != identity.id == table.id
    assert len(SelectionIdentity.model_fields) == 8
