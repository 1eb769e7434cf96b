"""Results from the rows of a sweep: statistics of every point, the choice, the time left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final

from pipeline.artefacts.run import Run
from pipeline.artefacts.sweep import (
    ACCURACIES,
    FAILED,
    OK,
    Chosen,
    Gain,
    Measured,
    PointResult,
    SweepFolder,
    SweepRecord,
    SweepRow,
)
from pipeline.methods.paired_differences import Difference, Spread, paired_difference, spread
from stages.config.sweep import Metric
from stages.sweep.points import Point

COLUMN_OF: Final[dict[Metric, str]] = {
    "mean-of-last": "held_out_mean_of_last",
    "last": "held_out_last",
    "best": "held_out_best",
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Sweep that has ended."""

    folder: SweepFolder
    record: SweepRecord
    rows: list[SweepRow]
    num_left: int
    """Number of runs that were not tried, in this part or another."""
    chosen: Chosen | None
    """None if runs are left, or no point has all its runs."""

    @property
    def num_failed(self) -> int:
        return sum(row.status == FAILED for row in self.rows)


def measured(rows: Iterable[SweepRow], point: str, column: str) -> dict[int, float]:
    """List one accuracy of a point by seed, for runs that succeeded."""
    own = [row for row in rows if row.point == point and row.status == OK]
    return {row.seed: getattr(row, column) for row in own}


def statistics(record: SweepRecord, rows: Sequence[SweepRow]) -> dict[str, dict[str, float | None]]:
    """Compute the columns that repeat in all rows of a point, for every point with a row."""
    by_point: dict[str, list[SweepRow]] = {}
    for row in rows:
        by_point.setdefault(row.point, []).append(row)
    baseline = by_point.get(record.baseline, [])
    return {point: _of_point(record, point, own, baseline) for point, own in by_point.items()}


def _of_point(
    record: SweepRecord, point: str, own: list[SweepRow], baseline: list[SweepRow]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "num_ok": sum(row.status == OK for row in own),
        "num_failed": sum(row.status == FAILED for row in own),
    }
    for column in ACCURACIES:
        of_all = spread(measured(own, point, column).values())
        found |= {f"{column}_mean": of_all.mean, f"{column}_std": of_all.std}
        gain = difference(record, [*own, *baseline], point, column)
        found |= {
            "num_pairs": None if gain is None else gain.num,
            f"{column}_difference": None if gain is None else gain.mean,
            f"{column}_difference_low": None if gain is None else gain.low,
            f"{column}_difference_high": None if gain is None else gain.high,
        }
    return found


def difference(
    record: SweepRecord, rows: Sequence[SweepRow], point: str, column: str
) -> Difference | None:
    """Subtract the baseline from a point over common seeds; None for the baseline itself."""
    if point == record.baseline:
        return None
    return paired_difference(
        measured(rows, point, column),
        measured(rows, record.baseline, column),
        confidence=record.confidence,
    )


def best_point(record: SweepRecord, rows: Sequence[SweepRow]) -> str | None:
    """Find the point with the best mean on held-out images; None if no point has all its runs.

    A point with a failed seed is not chosen for its other seeds. Of equal means the first point of
    the sweep is chosen.
    """
    means: dict[str, float] = {}
    for point in record.points:
        found = spread(measured(rows, point, record.metric).values())
        if found.mean is not None and found.num == len(record.seeds):
            means[point] = found.mean
    return max(means, key=means.__getitem__) if means else None


def look_at_test(
    record: SweepRecord, rows: Sequence[SweepRow], points: Sequence[Point], workspace: Path
) -> Chosen | None:
    """Compare the chosen point with the baseline, on the test images too: their only use."""
    name = best_point(record, rows)
    if name is None:
        return None
    tests = {point: _test(rows, point, workspace) for point in (name, record.baseline)}
    results = {p.name: _result(record, rows, p, tests[p.name]) for p in points if tests.get(p.name)}
    held_out_gain = test_gain = None
    if name != record.baseline:
        held_out_gain = difference(record, rows, name, record.metric)
        test_gain = paired_difference(
            tests[name], tests[record.baseline], confidence=record.confidence
        )
    return Chosen(
        sweep=record.name,
        metric=record.metric,
        chosen=results[name],
        baseline=results.get(record.baseline),
        held_out_gain=_gain(held_out_gain),
        test_gain=_gain(test_gain),
    )


def _result(
    record: SweepRecord, rows: Sequence[SweepRow], point: Point, test: Mapping[int, float]
) -> PointResult:
    held_out = measured(rows, point.name, record.metric)
    return PointResult(
        point=point.name,
        overrides=point.overrides,
        held_out=_measured(spread(held_out.values())),
        test=_measured(spread(test.values())),
    )


def _test(rows: Sequence[SweepRow], point: str, workspace: Path) -> dict[int, float]:
    """Read the accuracy on the test images by seed from the runs: the table does not have it."""
    own = [row for row in rows if row.point == point and row.run_path is not None]
    return {row.seed: Run.open(workspace / str(row.run_path)).result.test_accuracy for row in own}


def _measured(found: Spread) -> Measured:
    assert found.mean is not None, "a result has one run at least"
    return Measured(num_seeds=found.num, mean=found.mean, std=found.std)


def _gain(found: Difference | None) -> Gain | None:
    if found is None:
        return None
    return Gain(num_pairs=found.num, mean=found.mean, low=found.low, high=found.high)


def seconds_left(done: Sequence[SweepRow], left: Sequence[str]) -> float | None:
    """Estimate the training time of the runs that are left, given the point of each.

    The estimate uses the runs of the same point, or else those of all points. None if there are no
    runs yet.
    """
    known = [(row.point, row.seconds) for row in done if row.seconds is not None]
    if not known:
        return None
    overall = mean(seconds for _, seconds in known)
    by_point = {
        point: mean(seconds for name, seconds in known if name == point)
        for point in {name for name, _ in known}
    }
    return sum(by_point.get(point, overall) for point in left)
