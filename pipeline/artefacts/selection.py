"""The selection table: one parquet row per sample, in the order of sample_index.

    sample_index int64, sample_key (32 hex digits), label int32, held_out bool,
    teacher_class int32, teacher_correct bool, p_target, p_max, beta, cross_entropy, el2n,
    grand_head, margin, entropy float32           all of the clean view at temperature 1 but beta
    dloss_undistill, dloss_swap, dloss_remove float64, view_std float32
                                                  NaN on held-out rows and where not computed
    rank int32 (0 = distil first, -1 = no candidate), selected bool, reason string

    file metadata, key `heartcut`: `SelectionRecord` as JSON

Any reader of parquet opens it. A user may edit `selected` and train on the result: opening checks
rows, keys and ids, not who wrote it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artefacts.records import Record, parse_record
from pipeline.artefacts.store import publishing_file
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import Json, identity, short

FORMAT_VERSION: Final = 2
MADE_BY = "heartcut select"
SIGN_CONVENTION = (
    "predicted change of the mean held-out cross-entropy of the refitted head: "
    "dloss_undistill if the sample went from soft to hard label, everything being distilled "
    "(positive = distilling it helps); dloss_swap if it went from hard to soft label, nothing "
    "being distilled (negative = distilling it helps); dloss_remove if it were left out, nothing "
    "being distilled (positive = the sample helps)"
)
_METADATA_KEY = b"heartcut"
_ROW_GROUP = 65_536

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
    "dloss_undistill": pa.float64(),
    "dloss_swap": pa.float64(),
    "dloss_remove": pa.float64(),
    "view_std": pa.float32(),
    "rank": pa.int32(),
    "selected": pa.bool_(),
    "reason": pa.string(),
}
_JOINED = ("sample_index", "sample_key", "label", "teacher_class", "selected")
"""What training reads."""


class SelectionIdentity(Record):
    """Everything that the table depends on."""

    cache: str
    held_out: str
    """Hash of the held-out samples' keys."""
    soft_labels: str
    """Id of the soft labels that were selected from; beta is theirs."""
    strategy: str
    fraction: float | None
    class_quota: float | None
    seed: int
    influence: dict[str, float | str] | None
    """Settings of the influence scores; None where none were computed."""

    @property
    def id(self) -> str:
        return identity("selection", [FORMAT_VERSION, self.model_dump(mode="json")])


class SolveRecord(Record):
    """How well one head was fitted and one linear system solved."""

    linearised_at: str
    l2: float
    gradient_norm: float
    newton_iterations: int
    solver: str
    residual: float
    """Relative, of the linear solve."""
    iterations: int
    """Of the linear solve."""
    effective_parameters: float
    """p_eff / N; above 0.25 first-order scores are not to be trusted."""
    sum_rule_error: float
    held_out_loss: float
    """Mean cross-entropy of the refitted head on the held-out rows."""
    held_out_gradient_norm: float


class SelectionRecord(Record):
    """The table's own description."""

    format: Literal["heartcut.selection"] = "heartcut.selection"
    version: Literal[2] = FORMAT_VERSION
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
    """First-order: summed dloss_undistill of what is not selected, negated."""
    target_in_sample: bool
    num_not_cached: int
    """Samples that the teacher never saw; they keep their hard labels."""
    accepted: list[str]
    """Differences between cache and data set that the user accepted by name."""
    solves: list[SolveRecord]
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
            ArtefactMismatch: if it is no selection table, or its rows are not one per sample.
        """
        stored = _read_table(path)
        record = _read_metadata(path, stored)
        _require_columns(path, stored)
        frame = stored.replace_schema_metadata(None).to_pandas()  # pandas' own may be anything
        if not np.array_equal(frame["sample_index"], np.arange(len(frame))):
            raise ArtefactMismatch(
                f"{path} does not have one row per sample in the order of sample_index. "
                "Sort it by sample_index, or run `heartcut select` again."
            )
        return cls(path=path, record=record, frame=frame)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def selected(self) -> NDArray[np.bool_]:
        """(N,) bool"""
        return self.frame["selected"].to_numpy(dtype=bool)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64"""
        return self.frame["label"].to_numpy(dtype=np.int64)

    def require_samples(self, keys: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Refuse a table whose rows are not these samples."""
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


def write(path: Path, *, record: SelectionRecord, columns: dict[str, NDArray[np.generic]]) -> None:
    """Write a table and publish it under ``path`` when it is complete."""
    arrays = [pa.array(columns[name], type=kind) for name, kind in COLUMNS.items()]
    schema = pa.schema(
        list(COLUMNS.items()), metadata={_METADATA_KEY: record.model_dump_json().encode()}
    )
    with publishing_file(path) as partial:
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=schema),
            partial,
            compression="zstd",
            row_group_size=_ROW_GROUP,
            write_page_checksum=True,
        )


def selection_path(selections: Path, selection_id: str) -> Path:
    """Where a table lies by default."""
    return selections / f"{short(selection_id)}.parquet"


def key_text(keys: NDArray[np.uint8]) -> list[str]:
    """Sample keys as hex digits."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        _ = table.column_names  # decoded here: damaged names raise no earlier
        return table
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} does not exist. Make it with `{MADE_BY}`.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise ArtefactMismatch(
            f"{path} is not a readable parquet file: {told}. Remove it and run `{MADE_BY}` again."
        ) from error


def _read_metadata(path: Path, stored: pa.Table) -> SelectionRecord:
    metadata = (stored.schema.metadata or {}).get(_METADATA_KEY)
    if metadata is None:
        raise ArtefactMismatch(
            f"{path} is not a selection table: its metadata has no `heartcut` entry. If it was "
            "edited, write it with pyarrow and the original schema's metadata (docs/selection.md)."
        )
    remedy = f"Run `{MADE_BY}` again."
    try:
        value: Json = json.loads(metadata)
    except ValueError as error:
        raise ArtefactMismatch(f"{path} has damaged metadata: {error}. {remedy}") from error
    record = parse_record(SelectionRecord, value, path=path, remedy=remedy)
    if record.identity.id != record.id:
        raise ArtefactMismatch(
            f"{path} has an id that its settings do not give: {short(record.id)} (expected "
            f"{short(record.identity.id)}). {remedy}"
        )
    return record


def _require_columns(path: Path, stored: pa.Table) -> None:
    missing = [name for name in COLUMNS if name not in stored.column_names]
    if missing:
        raise ArtefactMismatch(
            f"{path} lacks the columns {', '.join(missing)}. "
            f"Restore them, or run `{MADE_BY}` again."
        )
    for name in _JOINED:
        column, wanted = stored.column(name), COLUMNS[name]
        if column.null_count or not _serves_as(column.type, wanted):
            raise ArtefactMismatch(
                f"{path} has a `{name}` column of {column.type} with {column.null_count} missing "
                f"values (expected {wanted}, none missing). Mend the column."
            )


def _serves_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether other writers of parquet store ``wanted`` as ``found``: wider numbers and strings."""
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found))
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == wanted)
