"""Predictions of a run's network for every held-out and test image, in the clean view.

    predictions.parquet     next to the weights of a run, one row per image
        split string        held_out or test
        sample_index int64  of train.beton or eval.beton
        label, predicted int32
        confidence float32  probability of the predicted class
        cross_entropy float32   of the label, nats

    file metadata, key `heartcut`: `PredictionRecord` as JSON

It can be recomputed from the weights and the images at any time, so a run without it is complete.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artefacts import tables
from pipeline.artefacts.records import Record

FILE: Final = "predictions.parquet"
HELD_OUT: Final[Literal["held_out"]] = "held_out"
TEST: Final[Literal["test"]] = "test"
_WHAT: Final = "table of predictions"

COLUMNS: Final[tables.Kinds] = {
    "split": pa.string(),
    "sample_index": pa.int64(),
    "label": pa.int32(),
    "predicted": pa.int32(),
    "confidence": pa.float32(),
    "cross_entropy": pa.float32(),
}


class PredictionRecord(Record):
    """Inputs of the predictions: the run's weights and the data set."""

    format: Literal["heartcut.predictions"] = "heartcut.predictions"
    version: Literal[1] = 1
    weights_sha256: str
    """SHA-256 of the run's weights file."""
    dataset: str


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Predictions for the images of one split, in the order of the loader, each array (N,)."""

    split: Literal["held_out", "test"]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    cross_entropy: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of a run, open for reading."""

    record: PredictionRecord
    frame: pd.DataFrame

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the predictions of the run in ``folder``.

        Raises:
            ArtefactNotFound: if there are none.
            ArtefactMismatch: if the file is damaged, or another one.
        """
        path = folder / FILE
        stored = tables.read(path)
        text = tables.metadata_text(stored, tables.RECORD) or ""
        record = tables.parse(PredictionRecord, text, path=path, what=_WHAT)
        tables.require_columns(path, stored, COLUMNS, joined=tuple(COLUMNS))
        return cls(record=record, frame=stored.replace_schema_metadata(None).to_pandas())

    def accuracy(self, split: Literal["held_out", "test"]) -> float:
        """Share of the images of one split whose predicted class is the label."""
        rows = self.of(split)
        return float((rows["predicted"] == rows["label"]).mean())

    def of(self, split: Literal["held_out", "test"]) -> pd.DataFrame:
        """The rows of one split."""
        return self.frame[self.frame["split"] == split]


def write(folder: Path, record: PredictionRecord, splits: list[SplitPredictions]) -> None:
    """Write the predictions of the run in ``folder``."""
    columns: dict[str, NDArray[np.generic]] = {
        "split": np.concatenate([np.full(len(part.labels), part.split) for part in splits]),
        "sample_index": np.concatenate([part.indices for part in splits]),
        "label": np.concatenate([part.labels for part in splits]),
        "predicted": np.concatenate([part.predicted for part in splits]),
        "confidence": np.concatenate([part.confidence for part in splits]),
        "cross_entropy": np.concatenate([part.cross_entropy for part in splits]),
    }
    table = tables.as_table(columns, COLUMNS)
    tables.write(folder / FILE, table, metadata={tables.RECORD: record.model_dump_json()})
