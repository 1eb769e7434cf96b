"""Soft labels, score files and selection tables of every format version: read to the bit, or
refused in one line.

python -m tests.artefacts.test_golden_selections  write those of this version; only for a new one

Unlike a cache they are made again in minutes, so older versions are refused and not read. Parquet
files are compared by what they hold, because another release of pyarrow may lay them out otherwise.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artefacts import scores as score_format
from pipeline.artefacts import selection as selection_format
from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.scores import (
    Diagnostics,
    ScoreIdentity,
    ScoreRecord,
    ScoreTable,
    SolveRecord,
)
from pipeline.artefacts.selection import SelectionIdentity, SelectionRecord, SelectionTable
from pipeline.artefacts.soft_labels import (
    HeadQuality,
    RepairIdentity,
    RepairReport,
    SoftLabelIdentity,
    SoftLabels,
)
from pipeline.methods.sparse_labels import packed_width
from tests.support.golden import GOLDEN, NUM_CLASSES, NUM_SAMPLES, digests, files, formula, labels
from tests.support.workspaces import read_or_refusal

VERSIONS = {
    "soft_labels": soft_format.FORMAT_VERSION,
    "scores": score_format.FORMAT_VERSION,
    "selection": selection_format.FORMAT_VERSION,
}
NUM_VIEWS, TOP_K = 2, 2
SOFT, SCORES, SELECTION = (f"{name}-v{version}" for name, version in VERSIONS.items())
SEALED = GOLDEN / "sealed-v1"
"""The same artefacts with digests in records and seals in tables, which GOLDEN's do not have."""
SOFT_LABELS_OF_SELECTION = "80937879cee71b6c590a643a35fb7ec209f1385c74b1b8c50f2d7a8aa2882426"
OLD = {
    "soft_labels-v3/dense": SoftLabels,
    "soft_labels-v3/packed": SoftLabels,
    "soft_labels-v2/dense": SoftLabels,
    "soft_labels-v2/packed": SoftLabels,
    "selection-v2/table.parquet": SelectionTable,
}
IDS = {
    ("soft_labels", "dense"): "b6990704fe00cb865f1849e1609f5b9a1f80078a9875a2a9f7652641b96471b7",
    ("soft_labels", "packed"): "4ea9a46378699760d6dc7b2c2689b0b1e0e37d9670c6d6c5cfc193624d943171",
    ("scores", "table"): "906df90049d8ac315f58b36df51c32506db1a20a70f00ce893043a87368d5838",
    ("selection", "table"): "220be5080e6dcff2ad3fda1539514820a259a3101e461d06ad522998085ca22c",
}
"""Those of a released version never change."""


def soft_rows(kind: str) -> np.ndarray:
    """Not probabilities, but numbers that are known."""
    if kind == "dense":
        return formula(NUM_VIEWS, NUM_SAMPLES, NUM_CLASSES, step=37).astype(np.float16)
    shape = (NUM_VIEWS, NUM_SAMPLES, packed_width(TOP_K))
    return (np.arange(np.prod(shape)) * 4099 % 65_536).astype(np.uint16).reshape(shape)


def soft_identity(kind: str) -> SoftLabelIdentity:
    return SoftLabelIdentity(
        cache="a" * 64,
        root="b" * 64,
        rows="c" * 64,
        accepted=("labels",) if kind == "dense" else (),
        view_spec={"padding": 4, "flip": True, "count": 2, "seed": 0},
        revision="wrong",
        eta=0.75,
        temperature=4.0,
        revise_at=2.0,
        views=(1, 2),
        top_k=0 if kind == "dense" else TOP_K,
        standardise=kind == "dense",
        repair=RepairIdentity(folds=5, seed=1, held_out="d" * 64) if kind == "dense" else None,
    )


def report() -> RepairReport:
    return RepairReport(
        before=HeadQuality(accuracy=0.5, loss=1.5, calibration_error=0.125, num_wrong=4),
        after=HeadQuality(accuracy=0.75, loss=1.25, calibration_error=0.0625, num_wrong=3),
        num_held_out=(2, 1),
        l2=2**-10,
        tried=[(2**-8, 1.375), (2**-10, 1.25)],
        folds=5,
        seed=1,
        gradient_norm=2**-30,
        weights="e" * 64,
    )


def write_soft(path: Path, kind: str) -> None:
    soft_format.write(
        path,
        identity=soft_identity(kind),
        views=[[view] for view in soft_rows(kind)],
        size=(NUM_SAMPLES, NUM_CLASSES),
        repaired=report() if kind == "dense" else None,
    )


def columns_of(kinds: dict[str, pa.DataType]) -> dict[str, np.ndarray]:
    """Other numbers in every column; NaN and null in row 3, which is held out."""
    made: dict[str, np.ndarray] = {}
    for step, (name, kind) in enumerate(kinds.items()):
        numbers = formula(NUM_SAMPLES, step=2 * step + 3)
        if pa.types.is_string(kind):
            made[name] = np.array([f"{name} {row}" for row in range(NUM_SAMPLES)])
        elif pa.types.is_floating(kind):
            made[name] = np.where(np.arange(NUM_SAMPLES) == 3, np.nan, numbers)
        else:
            made[name] = (numbers > 0) if pa.types.is_boolean(kind) else (8 * numbers).astype(int)
    made["sample_index"] = np.arange(NUM_SAMPLES)
    issues = made["label_issue"].astype(object)
    issues[3] = None
    return made | {"label_issue": issues}


def score_record() -> ScoreRecord:
    identity = ScoreIdentity(
        cache="a" * 64,
        root="b" * 64,
        rows="c" * 64,
        held_out="d" * 64,
        accepted=("labels",),
        settings={"l2": "auto", "folds": 5, "kd_weight": 0.75, "pca": None, "external": None},
        revision={"revision": "wrong", "eta": 0.75},
        repair="head",
    )
    solve = SolveRecord(
        linearised_at="all distilled",
        l2=2**-10,
        gradient_norm=2**-30,
        newton_iterations=7,
        solver="preconditioned conjugate gradients",
        precision="float64",
        residual=2**-20,
        iterations=11,
        num_rows=6,
        hessian_rows=6,
        effective_parameters=0.125,
        sum_rule_error=2**-18,
        held_out_loss=0.5,
        held_out_gradient_norm=0.25,
    )
    return ScoreRecord(
        id=identity.id,
        identity=identity,
        solves=[solve, solve.model_copy(update={"linearised_at": "all hard"})],
        diagnostics=Diagnostics(
            effective_parameters=0.125,
            sum_rule_error=2**-18,
            target_weight_cosine=-0.5,
            l2_grid=[(2**-8, 0.75), (2**-10, 0.5)],
            rank_stability={"l2 / 3": 0.96875, "3 l2": 0.9375},
            leak=0.03125,
            target="cross-fit",
            target_digest="e" * 64,
            target_in_sample=True,
            num_target=6,
            second_order_gain=-0.25,
        ),
    )


def write_scores(path: Path) -> None:
    columns = columns_of(score_format.COLUMNS)
    score_format.write(path, record=score_record(), columns=columns)


def selection_record() -> SelectionRecord:
    scores = score_record()
    identity = SelectionIdentity(
        cache="a" * 64,
        held_out="d" * 64,
        soft_labels=SOFT_LABELS_OF_SELECTION,
        strategy="influence",
        score="dloss_undistill",
        fraction=None,
        threshold=0.125,
        standard_errors=1.0,
        class_quota=0.5,
        beta=None,
        seed=3,
        scores=scores.id,
    )
    return SelectionRecord(
        id=identity.id,
        identity=identity,
        num_selected=4,
        num_candidates=6,
        num_wrong=2,
        num_wrong_selected=1,
        wrong_row_auc=0.75,
        predicted_gain=0.0625,
        target_in_sample=True,
        num_not_cached=0,
        accepted=["labels"],
        scores=scores,
        versions={"heartcut": "0", "torch": "0"},
    )


def selection_columns() -> dict[str, np.ndarray]:
    keys = np.array(selection_format.key_text(digests(step=7)))
    held_out = np.arange(NUM_SAMPLES) == 3
    facts = {"sample_key": keys, "label": labels(), "held_out": held_out}
    return columns_of(selection_format.COLUMNS) | facts


def write_selection(path: Path) -> None:
    selection_format.write(path, record=selection_record(), columns=selection_columns())


def write_all(folder: Path) -> None:
    """Everything of this version below ``folder``."""
    for kind in ("dense", "packed"):
        (folder / SOFT).mkdir(parents=True, exist_ok=True)
        write_soft(folder / SOFT / kind, kind)
    for name, write in ((SCORES, write_scores), (SELECTION, write_selection)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(folder / name / "table.parquet")


@pytest.mark.parametrize("golden", [GOLDEN, SEALED])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_released_soft_labels_read_to_the_bit_and_are_made_so_today(kind, golden, tmp_path):
    soft = SoftLabels.open(golden / SOFT / kind)
    for view, expected in zip(soft.views(), soft_rows(kind), strict=True):
        assert (view.dtype, view.tobytes()) == (expected.dtype, expected.tobytes())
    assert soft.record.identity == soft_identity(kind)
    assert soft.record.repaired == (report() if kind == "dense" else None)
    assert soft.id == IDS["soft_labels", kind]
    write_soft(tmp_path / kind, kind)
    written, kept = files(tmp_path / kind), files(golden / SOFT / kind)
    if golden == GOLDEN:  # its record has no digest
        record = json.loads(written.pop("soft_labels.json"))
        record.pop("digest")
        assert record == json.loads(kept.pop("soft_labels.json"))
    assert written == kept


def assert_frame(frame, columns: dict[str, np.ndarray], kinds: dict[str, pa.DataType]) -> None:
    assert list(frame) == list(kinds)
    issues = frame["label_issue"]
    assert [
        None if missing else bool(value)
        for value, missing in zip(issues, issues.isna(), strict=True)
    ] == columns["label_issue"].tolist()
    for name in kinds.keys() - {"label_issue"}:
        np.testing.assert_array_equal(frame[name].to_numpy(), columns[name], err_msg=name)


def assert_same_parquet(one: Path, other: Path) -> None:
    """Names, types and values; NaN is NaN. Older records lack fields that were added later."""
    ours, theirs = pq.read_table(one), pq.read_table(other)
    assert ours.schema.equals(theirs.schema)
    assert ours.schema.metadata.keys() == theirs.schema.metadata.keys()
    for name in ours.column_names:
        assert str(ours[name].to_pylist()) == str(theirs[name].to_pylist()), name


@pytest.mark.parametrize("golden", [GOLDEN, SEALED])
def test_a_released_score_file_reads_to_the_bit(golden, tmp_path):
    table = ScoreTable.open(golden / SCORES / "table.parquet")
    assert_frame(table.frame, columns_of(score_format.COLUMNS), score_format.COLUMNS)
    assert table.record == score_record()
    assert table.id == IDS["scores", "table"]
    write_scores(tmp_path / "table.parquet")
    assert_same_parquet(tmp_path / "table.parquet", golden / SCORES / "table.parquet")


@pytest.mark.parametrize("golden", [GOLDEN, SEALED])
def test_a_released_selection_table_reads_to_the_bit(golden, tmp_path):
    table = SelectionTable.open(golden / SELECTION / "table.parquet")
    assert_frame(table.frame, selection_columns(), selection_format.COLUMNS)
    assert table.record == selection_record()
    assert table.id == IDS["selection", "table"]
    table.require_samples(digests(step=7), labels())
    write_selection(tmp_path / "table.parquet")
    assert_same_parquet(tmp_path / "table.parquet", golden / SELECTION / "table.parquet")


@pytest.mark.parametrize("place", OLD)
def test_an_older_version_is_rejected_in_one_line_that_says_what_to_do(place):
    line = read_or_refusal(lambda: OLD[place].open(GOLDEN / place))
    assert isinstance(line, str), "it was read"
    assert str(GOLDEN / place) in line
    assert f"version: Input should be {VERSIONS[place.partition('-')[0]]}" in line
    assert "heartcut select" in line


def test_there_are_golden_artefacts_of_this_version(tmp_path):
    """A new version needs new ones: python -m tests.artefacts.test_golden_selections."""
    write_all(tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert all((folder / path).is_file() for folder in (GOLDEN, SEALED) for path in made)
    for path in made:
        content = (SEALED / path).read_bytes()
        is_table, is_record = path.suffix == ".parquet", path.name == "soft_labels.json"
        assert content.startswith(b"PAR1heartcut seal 1\n") or not is_table
        assert b'"digest"' in content or not is_record


if __name__ == "__main__":
    for name in (SOFT, SCORES, SELECTION):
        shutil.rmtree(SEALED / name, ignore_errors=True)
    write_all(SEALED)
