"""Text about a sweep: a line for each run, the table, and the choice."""

from collections.abc import Sequence

from pipeline.artefacts.sweep import FAILED, Gain, PointResult, SweepRow
from pipeline.methods.paired_differences import Difference
from stages.sweep.results import Sweep, difference, statistics
from stages.text import counted, markdown_table, percent_over_seeds, percentage_points

_TITLES = {
    "held_out_mean_of_last": "mean of last",
    "held_out_last": "last",
    "held_out_best": "best",
}


def as_markdown(sweep: Sweep) -> str:
    """Print the table of a sweep in per cent, the failures, and the chosen point."""
    record = sweep.record
    of_points = statistics(record, sweep.rows)
    header = (
        "point",
        "n",
        *(f"held out, {title}" for title in _TITLES.values()),
        f"{_TITLES[record.metric]}, minus {record.baseline}",
        "failed",
    )
    rows = [_cells(sweep, point, of_points[point]) for point in of_points]
    lines = [markdown_table([header, *rows]), ""]
    lines += [*_failures(sweep.rows), *_same_runs(sweep.rows), *_choice(sweep)]
    lines.append(f"Everything is in {sweep.folder.results}.")
    return "\n".join(lines)


def _cells(sweep: Sweep, point: str, found: dict[str, float | None]) -> tuple[str, ...]:
    record = sweep.record
    gain = difference(record, sweep.rows, point, record.metric)
    return (
        point,
        f"{found['num_ok']:.0f}",
        *(percent_over_seeds(found[f"{name}_mean"], found[f"{name}_std"]) for name in _TITLES),
        "baseline" if gain is None else _signed(gain),
        f"{found['num_failed']:.0f}",
    )


def _signed(gain: Difference | Gain) -> str:
    """Format a difference in percentage points; -0.00 is written as +0.00."""
    if gain.mean is None:
        return "no common seed"
    found = percentage_points(gain.mean, gain.low, gain.high).replace("-0.00", "+0.00")
    return found if gain.low is not None else f"{found} (one common seed, no interval)"


def _failures(rows: Sequence[SweepRow]) -> list[str]:
    """Print one line for each point and kind of error, with the first message."""
    found: dict[tuple[str, str | None], list[SweepRow]] = {}
    for row in rows:
        if row.status == FAILED:
            found.setdefault((row.point, row.error_type), []).append(row)
    return [
        f"failed: {own[0].point}, seed{'s' * (len(own) > 1)} "
        f"{', '.join(str(row.seed) for row in own)}: {own[0].error}"
        for own in found.values()
    ]


def _same_runs(rows: Sequence[SweepRow]) -> list[str]:
    """Report points that share their runs, because their settings have no effect on a run."""
    points: dict[str, list[str]] = {}
    for row in rows:
        if row.run_id is not None:
            points.setdefault(row.run_id, []).append(row.point)
    shared = dict.fromkeys(", ".join(names) for names in points.values() if len(names) > 1)
    return [
        f"the same runs, so the settings that differ have no effect: {names}" for names in shared
    ]


def _choice(sweep: Sweep) -> list[str]:
    """Print the chosen point, and its accuracy on the test images."""
    chosen = sweep.chosen
    if sweep.num_left:
        return [
            f"{counted(sweep.num_left, 'run')} of the sweep {_are(sweep.num_left)} left, so no "
            "point is chosen and the test images stay unseen."
        ]
    if chosen is None:
        return ["No point has all its runs, so no point is chosen and the test images stay unseen."]
    by = f"chosen by {_TITLES[chosen.metric]} on held-out images: {chosen.chosen.point}"
    lines = [by, f"test: {_test(chosen.chosen)}"]
    if chosen.baseline is None:
        lines.append(f"test: {sweep.record.baseline} (baseline) has no run")
    elif chosen.test_gain is not None:
        lines.append(f"test: {_test(chosen.baseline)}, the baseline")
        percent = f"{100 * chosen.confidence:.0f}"
        lines.append(
            f"test: chosen minus baseline {_signed(chosen.test_gain)} points "
            f"({percent} % interval, n = {chosen.test_gain.num_pairs})"
        )
    return lines


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _test(result: PointResult) -> str:
    test = result.test
    return f"{percent_over_seeds(test.mean, test.std)} (n = {test.num_seeds}) {result.point}"


def describe(row: SweepRow) -> str:
    """Describe a run in one line, without its accuracy on the test images."""
    where = f"{row.point}, seed {row.seed}"
    if row.status == FAILED:
        more = "" if row.traceback is None else f" (see {row.traceback})"
        return f"{where} failed: {row.error}{more}"
    accuracies = (row.held_out_mean_of_last, row.held_out_last, row.held_out_best)
    held_out = ", ".join(
        f"{title} {100 * (value or 0.0):.2f}"
        for title, value in zip(_TITLES.values(), accuracies, strict=True)
    )
    return f"{where}: held out {held_out} %, {row.seconds:.1f} s"
