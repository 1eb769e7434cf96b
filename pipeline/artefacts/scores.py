"""The score file: the predicted influence of every sample, one parquet row per sample.

It is computed once for one cache and one set of influence settings. Every selection with these
settings reads it, so a second strategy computes no scores. It is next to the selection tables.

    sample_index int64
    label_issue bool, nullable     the label is probably wrong; null where not computed
    p_refit float32                probability of the label by a head that did not see the sample
    dloss_undistill float64, dloss_swap float64, dloss_remove float64, each with `_se` float32
                                   `selection.SIGN_CONVENTION` defines them
    dloss_add, dloss_current float64
    self_influence, leverage, view_std float32
    undistil_order int32           position in the order of `param-change`, -1 = no candidate
                                   floats are NaN on rows without scores and where not computed

    file metadata, key `heartcut`: `ScoreRecord` as JSON
                   key `heartcut.digest`: hash of the columns and of the record

It must not be edited: a file with changed columns or a changed record is rejected.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import pandas as pd
import pyarrow as pa

from pipeline.artefacts import tables
from pipeline.artefacts.dataset import Samples
from pipeline.artefacts.records import Record
from pipeline.artefacts.tables import Columns
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import identity, short

FORMAT_VERSION: Final = 1
TRUSTED_SHARE: Final = 0.25
"""p_eff / N above which first-order scores no longer rank samples as retraining does."""
CLEAR_ERRORS: Final = 2.0
TRUSTED_LEAK: Final = 0.05
"""Difference in accuracy above which held-out rows may have been trained on."""
_SUFFIX: Final = ".scores.parquet"
_DIGEST: Final = "heartcut.digest"
_WHAT: Final = "score file"

COLUMNS: dict[str, pa.DataType] = {
    "sample_index": pa.int64(),
    "label_issue": pa.bool_(),
    "p_refit": pa.float32(),
    "dloss_undistill": pa.float64(),
    "dloss_undistill_se": pa.float32(),
    "dloss_swap": pa.float64(),
    "dloss_swap_se": pa.float32(),
    "dloss_remove": pa.float64(),
    "dloss_remove_se": pa.float32(),
    "dloss_add": pa.float64(),
    "dloss_current": pa.float64(),
    "self_influence": pa.float32(),
    "leverage": pa.float32(),
    "view_std": pa.float32(),
    "undistil_order": pa.int32(),
}


class ScoreIdentity(Record):
    """Everything that the scores depend on."""

    cache: str
    root: str
    """Root hash of the cache's bytes."""
    rows: str
    """Hash of the samples (key, label, pixels) in the order of the rows."""
    held_out: str
    """Hash of the held-out samples' keys."""
    accepted: tuple[str, ...]
    """Differences between cache and data set that the user accepted by name."""
    settings: dict[str, float | int | str | None]
    """Settings of the influence."""
    revision: dict[str, float | int | str | None] | None
    """Settings of the label revision; None if the teacher's labels were not revised."""
    repair: str
    """Repair of the teacher's classifier: "none", or "head" if it was refitted."""

    @property
    def id(self) -> str:
        return identity("scores", [FORMAT_VERSION, self.model_dump(mode="json")])


class SolveRecord(Record):
    """Accuracy of one fit of a head and of one linear solve."""

    linearised_at: str
    l2: float
    gradient_norm: float
    newton_iterations: int
    solver: str
    precision: str
    residual: float
    """Relative residual of the linear solve."""
    iterations: int
    """Iterations of the linear solve."""
    num_rows: int
    """Rows that the head was fitted to."""
    hessian_rows: int
    """Rows that the curvature was computed on."""
    effective_parameters: float
    """p_eff / N; first-order scores are unreliable above 0.25."""
    effective_parameters_error: float | None = None
    """Bound of the standard error of `effective_parameters`: 0 where it is exact. None in older
    files, where it is EK-FAC's."""
    sum_rule_error: float
    held_out_loss: float
    """Mean cross-entropy of the refitted head on the target."""
    held_out_gradient_norm: float


class Diagnostics(Record):
    """Evidence for or against the scores; docs/reference/selection.md explains it."""

    effective_parameters: float
    """Largest p_eff / N of the solves."""
    sum_rule_error: float
    """Largest relative error of the solves: the sum of all rows' scores is known exactly."""
    target_weight_cosine: float
    """cos<V, W>: share of the target's gradient that only sharpens or softens predictions."""
    l2_grid: list[tuple[float, float]]
    """[l2, loss on the part of the target that l2 is chosen on]; empty if l2 was given."""
    rank_stability: dict[str, float]
    """Spearman correlation of the selecting score with itself at another l2, by that l2's name."""
    leak: float | None
    """Teacher's accuracy on held-out rows minus on test images; None without a test cache."""
    leak_error: float | None = None
    """Standard error of `leak`, binomial; None in older files."""
    target: str
    """Samples whose loss is predicted: held-out, cross-fit or external."""
    target_digest: str
    """Hash of the target's sample keys."""
    target_in_sample: bool
    """True if the teacher's own training saw the target."""
    num_target: int
    """Samples whose loss is predicted."""
    second_order_gain: float | None
    """Predicted fall of the target's loss if every row with dloss_undistill <= 0 were supervised by
    its hard label, with the curvature's term; None without diagnostics."""
    difficulty: Literal["exact", "EK-FAC"] = "EK-FAC"
    """Curvature that self_influence and leverage were computed with."""
    gain_over_guess: tuple[float, float] | None = None
    """Mean loss of a guess by the classes' frequencies minus that of the head on hard labels, on
    the target, and its standard error, nats; None in older files."""

    @property
    def has_leak(self) -> bool:
        """True if the teacher is clearly better on held-out rows than on test images."""
        bound = max(TRUSTED_LEAK, CLEAR_ERRORS * (self.leak_error or 0.0))
        return self.leak is not None and self.leak > bound

    @property
    def is_guess(self) -> bool:
        """True if the head on hard labels is not clearly better than a guess."""
        return self.gain_over_guess is not None and is_no_gain(*self.gain_over_guess)


def is_no_gain(gain: float, error: float) -> bool:
    """True if a gain is not clearly above 0: within two standard errors, or negative."""
    return gain <= CLEAR_ERRORS * error


class ScoreRecord(Record):
    """The score file's own description."""

    format: Literal["heartcut.scores"] = "heartcut.scores"
    version: Literal[1] = FORMAT_VERSION
    id: str
    identity: ScoreIdentity
    solves: list[SolveRecord]
    diagnostics: Diagnostics


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A score file, open for reading."""

    path: Path
    record: ScoreRecord
    frame: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a score file; every byte of it is checked.

        Raises:
            ArtefactNotFound: if there is none.
            ArtefactMismatch: if it is not a score file, or was changed after it was written.
        """
        stored = tables.read(path)
        text = tables.metadata_text(stored, tables.RECORD)
        if text is None:
            raise ArtefactMismatch(
                f"{path} is not a {_WHAT}: its metadata has no `heartcut` entry. {tables.REMEDY}"
            )
        record = tables.parse(ScoreRecord, text, path=path, what=_WHAT)
        tables.require_own_id(path, found=record.id, expected=record.identity.id)
        tables.require_columns(path, stored, COLUMNS, joined=COLUMNS.keys() - tables.NULLABLE)
        if not _is_as_written(stored, text):
            raise ArtefactMismatch(
                f"{path} was edited: its columns or its record were changed. "
                f"Remove it and run `{tables.MADE_BY}` again."
            )
        return cls(path=path, record=record, frame=tables.as_frame(path, stored))

    @property
    def id(self) -> str:
        return self.record.id

    def require_samples(self, samples: Samples) -> None:
        """Reject a file whose rows are not these samples in this order."""
        found, wanted = self.record.identity.rows, samples.in_order
        if len(self.frame) != len(samples) or found != wanted:
            raise ArtefactMismatch(
                f"{self.path} has the scores of {len(self.frame):,} other samples: rows "
                f"{short(found)} (expected {len(samples):,}, {short(wanted)}). {tables.REMEDY}"
            )


def _is_as_written(stored: pa.Table, record: str) -> bool:
    if {field.name: field.type for field in stored.schema} != COLUMNS:
        return False
    return tables.metadata_text(stored, _DIGEST) == tables.digest(stored, record)


def write(path: Path, *, record: ScoreRecord, columns: Columns) -> None:
    """Write a score file and publish it under ``path`` when it is complete."""
    table, text = tables.as_table(columns, COLUMNS), record.model_dump_json()
    metadata = {tables.RECORD: text, _DIGEST: tables.digest(table, text)}
    tables.write(path, table, metadata=metadata)


def score_path(selections: Path, score_id: str) -> Path:
    """Path of a score file."""
    return selections / f"{short(score_id)}{_SUFFIX}"
