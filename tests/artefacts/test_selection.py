"""The selection table: readable anywhere, editable, and refused where it is not this data's."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import (
    COLUMNS,
    SelectionIdentity,
    SelectionTable,
    selection_path,
    write,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from stages import select, train_student
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.training.distillation_inputs import open_distillation_inputs
from tests.support.workspaces import flipped, read_or_refusal

STRINGS = ("sample_key", "reason")


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
    pd.testing.assert_frame_equal(frame.astype({"label_issue": "boolean"}), table.frame)
    assert frame["selected"].dtype == bool
    assert len(frame) == table.record.num_candidates + frame["held_out"].sum()


def test_what_is_written_is_read_with_its_types_and_its_gaps(table, stored, tmp_path):
    """Every column of other numbers than any other, a third of the label issues missing."""
    num = len(stored)
    rng = np.random.default_rng(0)
    columns = {
        name: rng.standard_normal(num).astype(kind.to_pandas_dtype())
        for name, kind in COLUMNS.items()
        if pa.types.is_floating(kind)
    }
    columns |= {
        name: rng.integers(0, 2 if pa.types.is_boolean(kind) else 99, num)
        for name, kind in COLUMNS.items()
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    }
    columns = {
        name: values.astype(COLUMNS[name].to_pandas_dtype()) for name, values in columns.items()
    }
    columns |= {name: np.array([f"{name} {i}" for i in range(num)]) for name in STRINGS}
    columns["sample_index"] = np.arange(num)
    gaps = np.arange(num) % 3 == 1
    issues = columns["label_issue"]
    columns["label_issue"] = np.ma.masked_array(issues, mask=gaps)
    path = tmp_path / "x.parquet"
    write(path, record=table.record, columns=columns)
    read = SelectionTable.open(path)
    assert read.record == table.record
    assert list(read.frame) == list(COLUMNS)
    for name in columns.keys() - {"label_issue"}:
        found = read.frame[name].to_numpy()
        assert np.array_equal(found, columns[name]), name
        assert name in STRINGS or found.dtype == COLUMNS[name].to_pandas_dtype(), name
    assert read.frame["label_issue"].dtype == "boolean"
    assert np.array_equal(read.frame["label_issue"].isna(), gaps)
    assert (read.frame["label_issue"][~gaps] == issues[~gaps]).all()


def test_a_table_is_found_by_its_name_or_else_by_its_id(tmp_path):
    assert selection_path(tmp_path, "f" * 64) == tmp_path / "ffffffffffff.parquet"
    assert selection_path(tmp_path, "f" * 64, name="mine") == tmp_path / "mine.parquet"


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


def by_pandas(path: Path, edited: Path, selected: np.ndarray) -> None:
    frame = pd.read_parquet(path)
    frame["selected"] = selected
    frame.to_parquet(edited)


def by_polars(path: Path, edited: Path, selected: np.ndarray) -> None:
    record = pl.read_parquet_metadata(path)["heartcut"]
    frame = pl.read_parquet(path).with_columns(selected=pl.Series(selected))
    frame.write_parquet(edited, metadata={"heartcut": record})


def by_duckdb(path: Path, edited: Path, selected: np.ndarray) -> None:
    wanted = pl.DataFrame({"sample_index": np.arange(len(selected)), "wanted": selected})
    connection = duckdb.connect()
    connection.register("edits", wanted.to_arrow())
    connection.execute(
        f"""
        SET VARIABLE record = (
            SELECT decode(value) FROM parquet_kv_metadata('{path}') WHERE decode(key) = 'heartcut');
        COPY (
            SELECT * EXCLUDE (wanted) REPLACE (wanted AS selected)
            FROM '{path}' JOIN edits USING (sample_index) ORDER BY sample_index
        ) TO '{edited}' (FORMAT parquet, KV_METADATA {{heartcut: getvariable('record')}});
        """
    )


@pytest.mark.parametrize("edit", [by_pandas, by_polars, by_duckdb])
def test_an_edit_by_another_program_keeps_everything_else(table, digits, tmp_path, edit):
    selected = ~table.selected
    edit(table.path, tmp_path / "mine.parquet", selected)
    read = SelectionTable.open(tmp_path / "mine.parquet")
    samples = Dataset.open(digits.data_folder).train.samples
    read.require_samples(samples.keys, samples.labels)
    assert read.record == table.record
    assert np.array_equal(read.selected, selected)
    expected = table.frame.assign(selected=selected)
    pd.testing.assert_frame_equal(read.frame, expected, check_dtype=False)


def test_pandas_without_the_attributes_gets_an_error_that_names_them(table, tmp_path):
    frame = pd.read_parquet(table.path)
    frame.attrs.clear()
    frame.to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ArtefactMismatch, match=r"`heartcut` entry.*docs/selection\.md"):
        SelectionTable.open(tmp_path / "mine.parquet")


@pytest.mark.parametrize("length", ["shorter", "longer"])
def test_rows_that_were_removed_or_added_are_rejected_with_the_first(table, tmp_path, length):
    frame = pd.read_parquet(table.path)
    rows = frame.drop(index=7) if length == "shorter" else pd.concat([frame[:8], frame[7:]])
    rows.attrs = frame.attrs
    rows.to_parquet(tmp_path / "mine.parquet")
    message = "row 7 has sample 8" if length == "shorter" else "row 8 has sample 7"
    with pytest.raises(ArtefactMismatch, match=message) as caught:
        SelectionTable.open(tmp_path / "mine.parquet")
    assert "\n" not in str(caught.value)


def test_fewer_rows_are_rejected_with_both_counts(stored, digits, tmp_path):
    samples = Dataset.open(digits.data_folder).train.samples
    short = SelectionTable.open(saved(stored.slice(0, 100), tmp_path))
    with pytest.raises(ArtefactMismatch, match=rf"100 rows .*{len(samples)}"):
        short.require_samples(samples.keys, samples.labels)


@pytest.mark.parametrize("name", ["sample_key", "label"])
def test_other_samples_are_rejected_with_the_first_that_differs(stored, digits, tmp_path, name):
    samples = Dataset.open(digits.data_folder).train.samples
    values = stored.column(name).to_pylist()
    values[7] = "0" * 32 if name == "sample_key" else (values[7] + 1) % 10
    other = SelectionTable.open(saved(with_column(stored, name, values), tmp_path))
    with pytest.raises(ArtefactMismatch, match=r"1 rows .*sample 7"):
        other.require_samples(samples.keys, samples.labels)


def reordered(stored: pa.Table) -> pa.Table:
    return stored.take(pa.array(np.arange(len(stored))[::-1]))


def with_a_null(stored: pa.Table, name: str) -> pa.Table:
    return with_column(stored, name, [None, *stored.column(name).to_pylist()[1:]])


def with_record(stored: pa.Table, found: str, text: str) -> pa.Table:
    """Other words in the record."""
    record = stored.schema.metadata[b"heartcut"].decode()
    assert found in record
    return stored.replace_schema_metadata({"heartcut": record.replace(found, text)})


def test_a_table_without_label_issues_opens_from_every_writer(stored, tmp_path):
    path = saved(with_column(stored, "label_issue", pa.nulls(len(stored), pa.bool_())), tmp_path)
    assert SelectionTable.open(path).frame["label_issue"].isna().all()
    pd.read_parquet(path).to_parquet(path)  # pandas writes a column of nothing
    assert pa.types.is_null(pq.read_schema(path).field("label_issue").type)
    assert SelectionTable.open(path).frame["label_issue"].isna().all()
    assert SelectionTable.open(path).frame["label_issue"].dtype == "boolean"


@pytest.mark.parametrize(
    ("edit", "message"),
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
        (lambda t: t.replace_schema_metadata({"heartcut": "[" * 99_999}), "has damaged metadata"),
        (lambda t: t.replace_schema_metadata({"PANDAS_ATTRS": "{"}), "has no `heartcut` entry"),
        (lambda t: t.replace_schema_metadata({"PANDAS_ATTRS": "[1]"}), "has no `heartcut` entry"),
        (lambda t: with_record(t, '"version":3', '"version":2'), "version: Input should be 3"),
        (
            lambda t: with_record(t, '"heartcut.selection"', '"heartcut.scores"'),
            "is not a selection table: its metadata says heartcut.scores",
        ),
        (lambda t: with_column(t, "beta", ["x"] * len(t)), "`beta` column of string"),
        (lambda t: with_column(t, "rank", [0.5] * len(t)), "`rank` column of double"),
        (lambda t: with_column(t, "label_issue", [0] * len(t)), "`label_issue` column of int64"),
    ],
)
def test_an_edit_that_breaks_the_table_is_rejected_in_one_line(stored, tmp_path, edit, message):
    path = saved(edit(stored), tmp_path)
    with pytest.raises(ArtefactMismatch, match=message) as caught:
        SelectionTable.open(path)
    assert "\n" not in str(caught.value)


def test_a_table_that_went_through_csv_is_the_same_to_training(stored, tmp_path):
    """A column without values loses its type there; the record is kept by hand."""
    columns = stored.to_pydict() | {"label_issue": [None] * len(stored)}
    table = pa.table(columns, schema=stored.schema)
    before = SelectionTable.open(saved(table, tmp_path))
    frame = pd.read_parquet(before.path)
    frame.to_csv(tmp_path / "table.csv", index=False)
    back = pd.read_csv(tmp_path / "table.csv")
    assert back["label_issue"].dtype == "float64"
    back.attrs = frame.attrs
    back.to_parquet(before.path)
    after = SelectionTable.open(before.path)
    assert np.array_equal(after.selected, before.selected)
    assert after.frame["label_issue"].dtype == "boolean"
    assert after.frame["label_issue"].isna().all()


def test_a_message_says_where_values_may_be_missing(stored, tmp_path):
    column = ["True", None, *["False"] * (len(stored) - 2)]
    path = saved(with_column(stored, "label_issue", column), tmp_path)
    with pytest.raises(ArtefactMismatch, match=r"expected bool, of which any may be missing"):
        SelectionTable.open(path)


def test_only_candidates_are_distilled(stored, tmp_path):
    ranks = stored.column("rank").to_numpy().copy()
    ranks[:2] = -1
    table = with_column(stored, "rank", ranks)
    table = with_column(table, "selected", [True] * len(stored))
    distilled = SelectionTable.open(saved(table, tmp_path)).distilled
    assert np.array_equal(distilled, ranks >= 0)
    assert 0 < distilled.sum() < len(distilled)


def test_settings_that_do_not_give_the_id_are_rejected(stored, tmp_path):
    text = stored.schema.metadata[b"heartcut"].replace(b'"seed":0', b'"seed":1')
    path = saved(stored.replace_schema_metadata({b"heartcut": text}), tmp_path)
    with pytest.raises(ArtefactMismatch, match=r"\bid\b.*settings"):
        SelectionTable.open(path)


def test_a_flipped_byte_is_rejected_or_changes_nothing_that_training_reads(table, tmp_path):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(table.path.read_bytes())
    num_rejected = 0
    for offset in range(0, path.stat().st_size, 61):
        with flipped(path, offset):
            read = read_or_refusal(lambda: SelectionTable.open(path))
        if isinstance(read, str):
            num_rejected += 1
        else:
            assert read.id == table.id, offset
            pd.testing.assert_frame_equal(read.frame, table.frame)
    assert num_rejected > 100


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all", bytes(4096)])
def test_a_file_that_is_not_parquet_is_rejected_in_one_line(tmp_path, data):
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(ArtefactMismatch, match=r"\.parquet .*readable") as caught:
        SelectionTable.open(path)
    assert "\n" not in str(caught.value)


def test_the_error_for_a_missing_table_names_its_command(tmp_path):
    with pytest.raises(ArtefactNotFound, match="`heartcut select`"):
        SelectionTable.open(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "b"},
        {"held_out": "b"},
        {"soft_labels": "b"},
        {"strategy": "correct"},
        {"score": "dloss_swap"},
        {"fraction": 0.5},
        {"threshold": 0.1},
        {"standard_errors": 2.0},
        {"class_quota": 0.1},
        {"beta": (0.5, 4.0)},
        {"seed": 1},
        {"scores": "b"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_identity_changes_the_id(table, change):
    identity = table.record.identity
    changed = SelectionIdentity.model_validate(identity.model_dump() | change)
    assert changed.id != identity.id == table.id
    assert len(SelectionIdentity.model_fields) == 12


def test_a_table_elsewhere_finds_its_soft_labels_in_the_workspace(table, digits, tmp_path):
    """docs/selection.md: train-student --selection elsewhere/mine.parquet."""
    frame = pd.read_parquet(table.path)
    frame["selected"] &= frame["sample_index"] % 2 == 0
    frame.to_parquet(tmp_path / "mine.parquet")
    config = with_overrides(
        digits,
        [f"train_student.selection={tmp_path / 'mine.parquet'}", "train_student.epochs=1"],
    )
    inputs = open_distillation_inputs(
        Caches(config=config, dataset=Dataset.open(digits.data_folder))
    )
    assert inputs.soft.path.parent == digits.selections_folder
    assert inputs.table.selected.sum() == frame["selected"].sum()
    away = with_overrides(config, [f"workspace={tmp_path / 'work'}"])
    with pytest.raises(ArtefactNotFound, match=r"has no soft labels: .*train_student.soft_labels="):
        open_distillation_inputs(Caches(config=away, dataset=Dataset.open(digits.data_folder)))
