"""The results of a sweep: every point under every seed, and the chosen point.

    <workspace>/sweeps/<name>/
        results.parquet       one row per point and seed that was tried; rewritten after each
        chosen.json           written last: the chosen point and the baseline, on held-out and
                              test images
        failures/<id>.txt     traceback of a run that failed, unless by a user's mistake
        lock                  held by the process that sweeps

    columns of results.parquet
        point string, is_baseline bool, seed int32
        <dotted key>          one column per axis: bool, int64, float64 or string; null where the
                              point does not set it
        settings string       hash of all settings of the row; "" if they are invalid
        status string         ok or failed
        error_type, error, traceback string
                              of a failed row: class, one line, file in this folder or null
        run_id, run_path string
                              the run, its path below the workspace
        held_out_last, held_out_best, held_out_mean_of_last float64
                              accuracies from 0 to 1
        best_epoch, mean_of_last int32
                              of held_out_best; number of epochs in held_out_mean_of_last
        seconds, images_per_second float64
                              of training
        num_distilled, num_training_samples int64
        num_ok, num_failed, num_pairs int32
                              seeds of the point so far; seeds that it shares with the baseline
        <accuracy>_mean, _std, _difference, _difference_low, _difference_high float64
                              for each of the three accuracies of the point: over its seeds; point
                              minus baseline over common seeds, with a 95 % confidence interval

    file metadata, key `heartcut`: `SweepRecord` as JSON; a seal (`sealed_parquet`)

Unknown values are null. No column has accuracies on test images, so that nobody chooses a row by
them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal, TypeAlias

import pyarrow as pa

from pipeline.artefacts import sealed_parquet, tables
from pipeline.artefacts.publishing import locked_folder, publish_json, publishing_file
from pipeline.artefacts.records import Record, parse_record
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json, short

FORMAT_VERSION: Final = 1
CONFIDENCE: Final = 0.95

Value: TypeAlias = bool | int | float | str

OK: Final = "ok"
FAILED: Final = "failed"
ACCURACIES: Final = ("held_out_mean_of_last", "held_out_last", "held_out_best")
RESULTS, CHOSEN = "results.parquet", "chosen.json"
_FAILURES, _LOCK = "failures", "lock"
_MADE_BY: Final = "heartcut sweep"


_OUTCOME: Final[tables.Kinds] = {
    "settings": pa.string(),
    "status": pa.string(),
    "error_type": pa.string(),
    "error": pa.string(),
    "traceback": pa.string(),
    "run_id": pa.string(),
    "run_path": pa.string(),
    "held_out_mean_of_last": pa.float64(),
    "held_out_last": pa.float64(),
    "held_out_best": pa.float64(),
    "best_epoch": pa.int32(),
    "mean_of_last": pa.int32(),
    "seconds": pa.float64(),
    "images_per_second": pa.float64(),
    "num_distilled": pa.int64(),
    "num_training_samples": pa.int64(),
}
STATISTICS: Final[tables.Kinds] = {
    **dict.fromkeys(("num_ok", "num_failed", "num_pairs"), pa.int32()),
    **{
        f"{accuracy}_{statistic}": pa.float64()
        for accuracy in ACCURACIES
        for statistic in ("mean", "std", "difference", "difference_low", "difference_high")
    },
}
"""Columns with the same value in all rows of a point."""


class SweepRecord(Record):
    """Record of the table: sweep, data set, points and seeds."""

    format: Literal["heartcut.sweep"] = "heartcut.sweep"
    version: Literal[1] = FORMAT_VERSION
    name: str
    dataset: str
    metric: str
    """Column of the accuracy that the point is chosen by."""
    baseline: str
    confidence: float = CONFIDENCE
    seeds: tuple[int, ...]
    points: dict[str, dict[str, Value | None]]
    """Name of each point -> its value on each axis."""


class Measured(Record):
    """An accuracy over seeds."""

    num_seeds: int
    mean: float
    std: float | None


class Gain(Record):
    """Chosen point minus baseline over common seeds."""

    num_pairs: int
    mean: float | None
    low: float | None
    high: float | None


class PointResult(Record):
    """One point on held-out and test images."""

    point: str
    overrides: tuple[str, ...]
    """Settings of the point, each as `section.key=value` like an argument of --set."""
    held_out: Measured
    test: Measured


class Chosen(Record):
    """chosen.json"""

    format: Literal["heartcut.sweep.chosen"] = "heartcut.sweep.chosen"
    version: Literal[1] = FORMAT_VERSION
    sweep: str
    metric: str
    confidence: float = CONFIDENCE
    chosen: PointResult
    baseline: PointResult | None
    """None if no run of the baseline succeeded."""
    held_out_gain: Gain | None
    """None if the baseline itself was chosen."""
    test_gain: Gain | None


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One point under one seed; the fields from `settings` on are columns."""

    point: str
    seed: int
    settings: str
    status: Literal["ok", "failed"]
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    run_id: str | None = None
    run_path: str | None = None
    held_out_mean_of_last: float | None = None
    held_out_last: float | None = None
    held_out_best: float | None = None
    best_epoch: int | None = None
    mean_of_last: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    num_distilled: int | None = None
    num_training_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """Folder of a sweep's results; a file that would not change is not written again."""

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from sweeping here.

        Raises:
            PipelineError: if another process sweeps here, or the folder cannot be written.
        """
        busy = (
            f"{self.path} is being swept by another process. Wait for it, or set another "
            "`sweep.name`."
        )
        with locked_folder(self.path, file=_LOCK, busy=busy):
            yield

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    @property
    def chosen(self) -> Path:
        return self.path / CHOSEN

    def rows(self) -> list[SweepRow]:
        """The rows of the table, without axes and statistics; empty if there is no table.

        Raises:
            ArtefactMismatch: if it is damaged, or not such a table.
        """
        if not self.results.exists():
            return []
        table = _read(self.results)
        _require_format(self.results, table)
        names = [field.name for field in fields(SweepRow)]
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise ArtefactMismatch(
                f"{self.results} lacks the columns {', '.join(missing)}. {_remedy(self.results)}"
            )
        return [SweepRow(**row) for row in table.select(names).to_pylist()]

    def write_results(
        self,
        record: SweepRecord,
        rows: Sequence[SweepRow],
        statistics: Mapping[str, Mapping[str, float | None]],
    ) -> None:
        """Replace the table; a choice from another table is removed.

        Args:
            record: the record of the table.
            rows: the runs so far.
            statistics: `STATISTICS` of every point in ``rows``.
        """
        table = _table(record, rows, statistics)
        if self.results.exists() and _read(self.results).equals(table, check_metadata=True):
            return
        self.chosen.unlink(missing_ok=True)
        sealed_parquet.write(self.results, table)

    def write_chosen(self, chosen: Chosen | None) -> None:
        """Write chosen.json, or remove it if ``chosen`` is None."""
        if chosen is None:
            self.chosen.unlink(missing_ok=True)
        else:
            publish_json(self.chosen, chosen.model_dump(mode="json"))

    def write_traceback(self, settings: str, text: str) -> str:
        """Store the traceback of a failed row; return its path below this folder."""
        path = self._traceback(settings)
        with publishing_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return str(path.relative_to(self.path))

    def forget_traceback(self, settings: str) -> None:
        """Remove the traceback of a row that did not fail this time."""
        self._traceback(settings).unlink(missing_ok=True)

    def _traceback(self, settings: str) -> Path:
        return self.path / _FAILURES / f"{short(settings)}.txt"


def sweep_folder(workspace: Path, name: str) -> SweepFolder:
    """Folder of a sweep in a workspace."""
    return SweepFolder(path=workspace / "sweeps" / name)


def shown(value: Value) -> str:
    """A value as in TOML, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def axis_kind(values: Sequence[Value]) -> pa.DataType:
    """Type of the column of an axis with these values; string if their types differ."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    if kinds and kinds <= {int, float}:
        return pa.float64()
    return pa.string()


def _table(
    record: SweepRecord,
    rows: Sequence[SweepRow],
    statistics: Mapping[str, Mapping[str, float | None]],
) -> pa.Table:
    outcomes = [asdict(row) for row in rows]
    columns: dict[str, pa.Array] = {
        "point": pa.array([row.point for row in rows], pa.string()),
        "is_baseline": pa.array([row.point == record.baseline for row in rows], pa.bool_()),
        **_axis_columns(record, rows),
        "seed": pa.array([row.seed for row in rows], pa.int32()),
    }
    for name, kind in _OUTCOME.items():
        columns[name] = pa.array([outcome[name] for outcome in outcomes], kind)
    for name, kind in STATISTICS.items():
        columns[name] = pa.array([statistics[row.point][name] for row in rows], kind)
    table = pa.Table.from_arrays(list(columns.values()), names=list(columns))
    return table.replace_schema_metadata({tables.RECORD: record.model_dump_json()})


def _axis_columns(record: SweepRecord, rows: Sequence[SweepRow]) -> dict[str, pa.Array]:
    columns = {}
    for axis in dict.fromkeys(axis for values in record.points.values() for axis in values):
        by_point = {name: values.get(axis) for name, values in record.points.items()}
        kind = axis_kind([value for value in by_point.values() if value is not None])
        values = [by_point[row.point] for row in rows]
        if kind == pa.string():
            values = [None if value is None else shown(value) for value in values]
        columns[axis] = pa.array(values, kind)
    return columns


def _read(path: Path) -> pa.Table:
    remedy = _remedy(path)
    with sealed_parquet.opened(path, whole=True, made_by=_MADE_BY, remedy=remedy) as file:
        return file.read()


def _require_format(path: Path, table: pa.Table) -> None:
    text = tables.metadata_text(table, tables.RECORD) or "null"
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise ArtefactMismatch(f"{path} has damaged metadata: {error}. {_remedy(path)}") from error
    parse_record(SweepRecord, value, path=path, remedy=_remedy(path))


def _remedy(path: Path) -> str:
    return f"Remove {path} and run `{_MADE_BY}` again: finished runs are kept."
