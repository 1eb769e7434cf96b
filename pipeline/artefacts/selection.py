"""The selection table: one parquet row per sample, in the order of sample_index.

    sample_index int64, sample_key (32 hex digits), label int32, held_out bool,
    teacher_class int32, teacher_correct bool, p_target, p_max, beta, cross_entropy, el2n,
    grand_head, margin, entropy float32           in the clean view at temperature 1, except beta
    label_issue bool, nullable; p_refit float32   null and NaN where not computed
    dloss_undistill, dloss_swap, dloss_remove float64, each with standard error `_se` float32;
    dloss_add, dloss_current float64; self_influence, leverage, view_std float32
                                                  NaN on rows that were not scored
    rank int32 (0 = distil first, -1 = not a candidate), selected bool, reason string

    file metadata, key `heartcut`: `SelectionRecord` as JSON
                   key `PANDAS_ATTRS`: the same record, so that pandas keeps it
    a seal of all bytes (`sealed_parquet`)

Any parquet reader opens it. A user may edit `selected` and train on the result: the program that
writes the edited table leaves out the seal. Opening checks rows, keys and ids, but not the values,
and only candidates are distilled. The influence columns are copies of the score file's (`scores`).
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artefacts import scores, tables
from pipeline.artefacts.records import Record
from pipeline.artefacts.scores import ScoreRecord
from pipeline.artefacts.tables import Columns
from pipeline.errors import ArtefactExists, ArtefactMismatch, PipelineError
from pipeline.provenance import identity, short

FORMAT_VERSION: Final = 3
SIGN_CONVENTION: Final = (
    "predicted change of the target's mean cross-entropy by the refitted head: "
    "dloss_undistill if the sample went from soft to hard label, everything being distilled "
    "(positive = distil it); dloss_swap if it went from hard to soft label, nothing being "
    "distilled (negative = distil it); dloss_remove if it were left out, nothing being distilled "
    "(positive = the sample helps); dloss_add if the distillation term were added to its hard "
    "label, nothing being distilled (negative = distil it); dloss_current if it went from soft to "
    "hard label, the selection of the last round being distilled (positive = distil it)"
)
_SUFFIX: Final = ".parquet"
_WHAT: Final = "selection table"
_OF_THE_SCORE_FILE_ALONE: Final = ("sample_index", "undistil_order")

COLUMNS: dict[str, pa.DataType] = {
    "sample_index": pa.int64(),
    "sample_key": pa.string(),
    "label": pa.int32(),
    "held_out": pa.bool_(),
    "teacher_class": pa.int32(),
    "teacher_correct": pa.bool_(),
    "p_target": pa.float32(),
    "p_max": pa.float32(),
    "beta": pa.float32(),
    "cross_entropy": pa.float32(),
    "el2n": pa.float32(),
    "grand_head": pa.float32(),
    "margin": pa.float32(),
    "entropy": pa.float32(),
    **{name: kind for name, kind in scores.COLUMNS.items() if name not in _OF_THE_SCORE_FILE_ALONE},
    "rank": pa.int32(),
    "selected": pa.bool_(),
    "reason": pa.string(),
}
_JOINED: Final = ("sample_index", "sample_key", "label", "teacher_class", "rank", "selected")
"""Columns that training reads; their values must be complete."""


class SelectionIdentity(Record):
    """Everything that the table depends on."""

    cache: str
    held_out: str
    """Hash of the held-out samples' keys."""
    soft_labels: str
    """Id of the soft labels of the candidates; the column beta comes from them."""
    strategy: str
    score: str | None
    """Column that the strategy reads; None if it reads no influence score."""
    fraction: float | None
    threshold: float | None
    standard_errors: float | None
    """Distance in standard errors that a score must have from its threshold."""
    class_quota: float | None
    beta: tuple[float, float] | None
    """Mean percentile and concentration of the strategy `beta`."""
    seed: int
    scores: str | None
    """Id of the score file; None if the strategy reads none."""

    @property
    def id(self) -> str:
        return identity("selection", [FORMAT_VERSION, self.model_dump(mode="json")])


class SelectionRecord(Record):
    """The table's own description."""

    format: Literal["heartcut.selection"] = "heartcut.selection"
    version: Literal[3] = FORMAT_VERSION
    id: str
    identity: SelectionIdentity
    sign_convention: str = SIGN_CONVENTION
    num_selected: int
    num_candidates: int
    num_wrong: int
    """Candidates that the teacher gets wrong."""
    num_wrong_selected: int
    wrong_row_auc: float | None
    """AUC of low dloss_undistill for rows that the teacher gets wrong; None where not computed."""
    predicted_gain: float | None
    """First-order estimate: minus the sum of dloss_undistill over the rows not selected."""
    target_in_sample: bool
    num_not_cached: int
    """Samples that the teacher never saw; they keep their hard labels."""
    accepted: list[str]
    """Differences between cache and data set that the user accepted by name."""
    scores: ScoreRecord | None
    """Record of the influence columns; None if there are none."""
    fallback: Literal["all", "random"] | None = None
    """Strategy that chose instead, because the head that gives the scores is no better than a
    guess; None if the table's own strategy chose."""
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SelectionTable:
    """A selection table, open for reading."""

    path: Path
    record: SelectionRecord
    frame: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a table.

        Raises:
            ArtefactNotFound: if there is none.
            ArtefactMismatch: if it is not a selection table, or has not one row per sample.
        """
        stored = tables.read(path)
        record = _read_record(path, stored)
        tables.require_columns(path, stored, COLUMNS, joined=_JOINED)
        typed = tables.with_empty_columns(stored, COLUMNS)
        return cls(path=path, record=record, frame=tables.as_frame(path, typed))

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Column `selected`, (N,) bool; an edit may have set it for any sample."""
        return self.frame["selected"].to_numpy(dtype=bool)

    @property
    def distilled(self) -> NDArray[np.bool_]:
        """True for samples to distil, (N,) bool: the selected ones among the candidates."""
        is_candidate: NDArray[np.bool_] = self.frame["rank"].to_numpy() >= 0
        return is_candidate & self.selected

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class ids, (N,) int64."""
        return self.frame["label"].to_numpy(dtype=np.int64)

    def require_samples(self, keys: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Reject a table whose rows are not these samples."""
        if len(self.frame) != len(labels):
            raise ArtefactMismatch(
                f"{self.path} has {len(self.frame):,} rows (expected {len(labels):,}, one per "
                "sample of train.beton). Run `heartcut select` on this data."
            )
        hexed = pd.Series(key_text(keys))
        differing = np.flatnonzero(
            (hexed.to_numpy() != self.frame["sample_key"].to_numpy()) | (labels != self.labels)
        )
        if len(differing):
            raise ArtefactMismatch(
                f"{self.path} belongs to other data: {len(differing):,} rows differ in key or "
                f"label, the first is sample {differing[0]}. Run `heartcut select` on this data."
            )


def read_selection_record(path: Path) -> SelectionRecord:
    """Read the record of a table without its rows.

    Raises:
        ArtefactNotFound: if there is no table.
        ArtefactMismatch: if it is not a selection table.
    """
    return _read_record(path, tables.read_head(path))


def write(path: Path, *, record: SelectionRecord, columns: Columns) -> None:
    """Write a table and publish it under ``path`` when it is complete."""
    text = record.model_dump_json()
    metadata = {tables.RECORD: text, **tables.for_pandas(text)}
    tables.write(path, tables.as_table(columns, COLUMNS), metadata=metadata)


def selection_path(selections: Path, selection_id: str, *, name: str = "") -> Path:
    """Path of a table: by its name, or by its id if it has none."""
    return selections / f"{name or short(selection_id)}{_SUFFIX}"


def find_selection(selections: Path, selection_id: str) -> Path | None:
    """Path of the table with an id, under its id or under any name; None if there is none."""
    path = selection_path(selections, selection_id)
    if path.exists():
        return path
    for named in sorted(selections.glob(f"*{_SUFFIX}")):
        with suppress(PipelineError):  # another format, or damaged: not this table
            if read_selection_record(named).id == selection_id:
                return named
    return None


def require_same_selection(path: Path, wanted: SelectionIdentity) -> None:
    """Reject a name that was given to another selection.

    Raises:
        ArtefactExists: if it is another one.
    """
    found = SelectionTable.open(path).record
    if found.id == wanted.id:
        return
    differing = [
        f"{name} {was} (expected {wants})"
        for (name, was), (_, wants) in zip(found.identity, wanted, strict=True)
        if was != wants
    ]
    raise ArtefactExists(
        f"{path} holds another selection: {', '.join(differing)}. Choose another `--name`, or "
        "remove the file."
    )


def key_text(keys: NDArray[np.uint8]) -> list[str]:
    """Sample keys as hex digits."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def _read_record(path: Path, stored: pa.Table) -> SelectionRecord:
    own, carried = tables.metadata_text(stored, tables.RECORD), tables.carried_by_pandas(stored)
    if own is not None and carried is not None and own != carried:
        raise ArtefactMismatch(
            f"{path} has two records that differ, under `{tables.RECORD}` and in what pandas "
            f"keeps (expected the same one). {tables.REMEDY}"
        )
    text = own or carried
    if text is None:
        raise ArtefactMismatch(
            f"{path} is not a selection table: its metadata has no `heartcut` entry. If it was "
            "edited, write it with the original's metadata (docs/selection.md)."
        )
    record = tables.parse(SelectionRecord, text, path=path, what=_WHAT)
    tables.require_own_id(path, found=record.id, expected=record.identity.id)
    return record
