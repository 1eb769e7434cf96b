"""The score file: read as written, shared by selections, and refused where anything differs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.artefacts.scores import (
    COLUMNS,
    Diagnostics,
    ScoreIdentity,
    ScoreRecord,
    ScoreTable,
    SolveRecord,
    score_path,
    write,
)
from pipeline.artefacts.selection import SelectionTable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from tests.support.small_caches import some_samples
from tests.support.workspaces import flipped, read_or_refusal

NUM = 600
SAMPLES = some_samples(NUM)
NOT_SCORED = np.arange(NUM) % 10 == 3


def identity() -> ScoreIdentity:
    return ScoreIdentity(
        cache="0" * 64,
        root="1" * 64,
        rows=SAMPLES.in_order,
        held_out="2" * 64,
        accepted=(),
        settings={"l2": 1e-4, "folds": 5, "target": "held-out", "pca": None},
        revision=None,
        repair="none",
    )


def solve_record(name: str) -> SolveRecord:
    return SolveRecord(
        linearised_at=name,
        l2=1e-4,
        gradient_norm=1e-9,
        newton_iterations=7,
        solver="conjugate gradients",
        precision="float64",
        residual=1e-7,
        iterations=12,
        num_rows=540,
        hessian_rows=540,
        effective_parameters=0.1,
        sum_rule_error=1e-8,
        held_out_loss=0.5,
        held_out_gradient_norm=0.01,
    )


def record() -> ScoreRecord:
    own = identity()
    return ScoreRecord(
        id=own.id,
        identity=own,
        solves=[solve_record("all distilled"), solve_record("all hard")],
        diagnostics=Diagnostics(
            effective_parameters=0.1,
            sum_rule_error=1e-8,
            target_weight_cosine=-0.2,
            l2_grid=[(1e-5, 0.52), (1e-4, 0.5)],
            rank_stability={"l2/3": 0.97, "3*l2": 0.98},
            leak=None,
            target="held-out",
            target_digest="2" * 64,
            target_in_sample=False,
            num_target=60,
            second_order_gain=-0.001,
        ),
    )


def columns() -> dict[str, np.ndarray]:
    """Other numbers in every column; NaN, null and -1 on the rows that are not scored."""
    rng = np.random.default_rng(1)
    made: dict[str, np.ndarray] = {}
    for name, kind in COLUMNS.items():
        made[name] = rng.standard_normal(NUM).astype(kind.to_pandas_dtype())
        if pa.types.is_floating(kind):
            made[name][NOT_SCORED] = np.nan
    made["sample_index"] = np.arange(NUM)
    made["label_issue"] = np.ma.masked_array(rng.integers(0, 2, NUM) > 0, mask=NOT_SCORED)
    made["undistil_order"] = np.where(NOT_SCORED, -1, rng.permutation(NUM)).astype(np.int32)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = score_path(tmp_path, identity().id)
    write(place, record=record(), columns=columns())
    return place


def test_it_is_next_to_the_tables_under_its_short_id(tmp_path):
    assert score_path(tmp_path, "f" * 64) == tmp_path / "ffffffffffff.scores.parquet"


def test_what_is_written_is_read_with_its_types_and_its_gaps(path):
    table, written = ScoreTable.open(path), columns()
    assert table.record == record()
    assert table.id == identity().id
    assert list(table.frame) == list(COLUMNS)
    for name in COLUMNS.keys() - {"label_issue"}:
        found = table.frame[name].to_numpy()
        np.testing.assert_array_equal(found, written[name], err_msg=name)
        assert found.dtype == COLUMNS[name].to_pandas_dtype(), name
    issues = table.frame["label_issue"]
    assert issues.dtype == "boolean"
    assert np.array_equal(issues.isna(), NOT_SCORED)
    assert (issues[~NOT_SCORED] == written["label_issue"].data[~NOT_SCORED]).all()


def test_columns_have_the_documented_names_and_types(path):
    schema = pq.read_schema(path)
    assert {field.name: field.type for field in schema} == COLUMNS


def test_the_same_scores_are_the_same_bytes(path, tmp_path):
    write(tmp_path / "again.parquet", record=record(), columns=columns())
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_it_belongs_to_its_samples_in_their_order(path):
    table = ScoreTable.open(path)
    table.require_samples(SAMPLES)
    everyone = np.arange(NUM)
    others = [SAMPLES.rows(everyone[::-1]), SAMPLES.rows(everyone[:-1]), some_samples(NUM, seed=1)]
    others += [
        replace(SAMPLES, labels=(SAMPLES.labels + 1) % 5),
        replace(SAMPLES, pixels=SAMPLES.pixels ^ np.uint8(1)),
    ]
    for other in others:
        with pytest.raises(
            ArtefactMismatch, match=r"has the scores of 600 other samples"
        ) as raised:
            table.require_samples(other)
        assert "\n" not in str(raised.value)


def test_every_flipped_byte_is_rejected_or_changes_nothing(path):
    original = ScoreTable.open(path)
    num_rejected = num_read = 0
    for offset in range(0, path.stat().st_size, 331):
        with flipped(path, offset):
            read = read_or_refusal(lambda: ScoreTable.open(path))
        if isinstance(read, str):
            num_rejected += 1
        else:
            num_read += 1
            assert read.record == original.record, offset
            pd.testing.assert_frame_equal(read.frame, original.frame)
    assert num_rejected > 10 * num_read


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_rejected(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactMismatch, match=r"\.parquet .*readable") as message:
        ScoreTable.open(path)
    assert "\n" not in str(message.value)


def test_the_error_for_a_missing_file_names_its_command(tmp_path):
    with pytest.raises(ArtefactNotFound, match="`heartcut select`"):
        ScoreTable.open(tmp_path / "x.scores.parquet")


def replaced(stored: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return stored.set_column(stored.column_names.index(name), name, values).replace_schema_metadata(
        stored.schema.metadata
    )


def edited(name: str, row: int, change) -> object:
    """One value of one column changed; its type and the metadata stay."""

    def edit(stored: pa.Table) -> pa.Table:
        values = stored.column(name).to_pylist()
        values[row] = change(values[row])
        return replaced(stored, name, pa.array(values, COLUMNS[name]))

    return edit


def with_record(found: str, text: str) -> object:
    def edit(stored: pa.Table) -> pa.Table:
        old = stored.schema.metadata[b"heartcut"].decode()
        assert found in old
        new = {b"heartcut": old.replace(found, text).encode()}
        return stored.replace_schema_metadata(stored.schema.metadata | new)

    return edit


WIDER = pa.array(np.arange(NUM, dtype=np.float64))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("dloss_swap", 0, lambda v: np.nextafter(v, 1.0)), "was edited: its columns"),
        (edited("p_refit", 5, lambda v: -v), "was edited: its columns"),
        (edited("label_issue", 4, lambda v: not v), "was edited: its columns"),
        (edited("label_issue", 4, lambda _: None), "was edited: its columns"),
        (edited("label_issue", 3, lambda _: False), "was edited: its columns"),
        (edited("undistil_order", 0, lambda v: v + 1), "was edited: its columns"),
        (edited("sample_index", 9, lambda v: v + 1), "was edited: its columns"),
        (edited("dloss_add", 1, lambda _: None), r"`dloss_add` column of double with 1 missing"),
        (lambda t: replaced(t, "leverage", WIDER), "was edited: its columns"),
        (lambda t: t.append_column("mine", WIDER), "was edited: its columns"),
        (lambda t: t.take(pa.array(np.arange(NUM)[::-1])), "was edited: its columns"),
        (lambda t: t.slice(0, NUM - 1), "was edited: its columns"),
        (lambda t: t.drop_columns(["leverage", "view_std"]), "lacks the columns leverage, view_s"),
        (with_record('"effective_parameters":0.1', '"effective_parameters":0.2'), "was edited"),
        (with_record('"version":1', '"version":2'), "version: Input should be 1"),
        (with_record('"heartcut.scores"', '"heartcut.selection"'), "is not a score file"),
        (
            with_record('"repair":"none"', '"repair":"head"'),
            "an id that does not match its settings",
        ),
        (lambda t: t.replace_schema_metadata({"heartcut": "{"}), "has damaged metadata"),
        (lambda t: t.replace_schema_metadata(None), "metadata has no `heartcut` entry"),
    ],
)
def test_any_edit_is_rejected_in_one_line(path, edit, message):
    pq.write_table(edit(pq.read_table(path)), path)
    with pytest.raises(ArtefactMismatch, match=message) as caught:
        ScoreTable.open(path)
    assert "\n" not in str(caught.value)


def test_rows_in_another_order_are_rejected_even_where_they_were_written_so(tmp_path):
    shuffled = columns() | {"sample_index": np.arange(NUM)[::-1]}
    write(tmp_path / "x.scores.parquet", record=record(), columns=shuffled)
    with pytest.raises(ArtefactMismatch, match="row 0 has sample 599"):
        ScoreTable.open(tmp_path / "x.scores.parquet")


def test_scores_are_not_a_selection_and_a_selection_is_not_scores(path):
    with pytest.raises(ArtefactMismatch, match=r"selection table.*heartcut\.scores"):
        SelectionTable.open(path)


def test_numbers_that_are_none_are_not_recorded():
    with pytest.raises(ValidationError, match="finite"):
        Diagnostics.model_validate(record().diagnostics.model_dump() | {"leak": float("nan")})


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "b"},
        {"root": "b"},
        {"rows": "b"},
        {"held_out": "b"},
        {"accepted": ("labels",)},
        {"settings": {"l2": 1e-3, "folds": 5, "target": "held-out", "pca": None}},
        {"revision": {"revision": "wrong", "eta": 0.8}},
        {"repair": "head"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_identity_changes_the_id(change):
    changed = ScoreIdentity.model_validate(identity().model_dump() | change)
    assert changed.id != identity().id
    assert len(ScoreIdentity.model_fields) == 8


def test_a_whole_number_and_a_fraction_stay_what_they_are():
    read = ScoreIdentity.model_validate_json(identity().model_dump_json())
    assert read == identity()
    assert [type(value) for value in read.settings.values()] == [float, int, str, type(None)]
