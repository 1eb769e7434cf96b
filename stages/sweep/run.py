"""sweep: one configuration -> the student under every point and seed, one table, one choice.

Runs all stages that are missing: the teacher and its cache once for all points that share them, the
selection once for each point. Outputs that exist are kept, so a sweep that was stopped resumes, and
failed runs are repeated.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from pipeline.artefacts.sweep import FAILED, OK, SweepFolder, SweepRecord, SweepRow, sweep_folder
from stages.config.root import Config
from stages.sweep.points import Point, baseline_of, sweep_points
from stages.sweep.report import describe
from stages.sweep.results import COLUMN_OF, Sweep, look_at_test, seconds_left, statistics
from stages.sweep.tasks import (
    EVERYTHING,
    Failure,
    Part,
    Students,
    Task,
    attempt,
    known_rows,
    tasks_of,
)
from stages.text import counted, duration, markdown_table

logger = logging.getLogger(__name__)


def execute(config: Config, part: Part = EVERYTHING) -> Sweep:
    """Train every point of ``config.sweep`` with every seed, even if single runs fail.

    A part writes the same table as the whole. No point is chosen before all runs were tried.

    Raises:
        ConfigError: if the sweep is not well formed, or has no such part. Nothing was run.
        PipelineError: if the images cannot be prepared, or the table cannot be written.
    """
    from stages import prepare

    points = sweep_points(config)
    baseline = baseline_of(config, points)
    tasks = tasks_of(config, points)
    wanted = part.of(tasks)
    for point in points:
        if point.config is None:
            logger.warning("%s is rejected: %s", point.name, point.refusal)
    folder = sweep_folder(config.workspace, config.sweep.name)
    with folder.locked():
        dataset = prepare.execute(config)
        record = _record(config, points, baseline, dataset=dataset.record.id)
        table = _Table(config, folder, record, tasks)
        table.fill(wanted)
        rows = table.rows
        num_left = len(tasks) - len(rows)
        chosen = None
        if not num_left:
            chosen = look_at_test(record, rows, points, config.workspace)
        folder.write_chosen(chosen)
    return Sweep(folder=folder, record=record, rows=rows, num_left=num_left, chosen=chosen)


def preview(config: Config, part: Part = EVERYTHING) -> str:
    """List the points, the numbers of runs done and left, and the time that is left.

    A run counts as done if the table of the sweep has it. A run of another command is found when
    its turn comes.

    Raises:
        ConfigError: if the sweep is not well formed, or has no such part.
    """
    points = sweep_points(config)
    baseline = baseline_of(config, points)
    tasks = [task for task in part.of(tasks_of(config, points)) if task.config is not None]
    known = known_rows(config, sweep_folder(config.workspace, config.sweep.name), tasks)
    done = [row for row in known.values() if row.status == OK]
    failed = Counter(row.point for row in known.values() if row.status == FAILED)
    counts = Counter(row.point for row in done)
    left = Counter(task.point.name for task in tasks) - counts
    cells = [
        (
            point.name + (" (baseline)" if point is baseline else ""),
            str(counts[point.name]),
            str(left[point.name]),
            str(failed[point.name]),
        )
        for point in points
    ]
    lines = [markdown_table([("point", "done", "left", "of these failed before"), *cells]), ""]
    lines += [f"rejected: {p.name}: {p.refusal}" for p in points if p.config is None]
    seconds = seconds_left(done, list(left.elements()))
    time = "" if seconds is None or not left else f", about {duration(seconds)} of training"
    lines.append(f"{counted(len(tasks), 'run')}: {len(done)} done, {left.total()} left{time}.")
    return "\n".join(lines)


def _record(
    config: Config, points: Sequence[Point], baseline: Point, *, dataset: str
) -> SweepRecord:
    settings = config.sweep
    return SweepRecord(
        name=settings.name,
        dataset=dataset,
        metric=COLUMN_OF[settings.metric],
        baseline=baseline.name,
        seeds=settings.seeds,
        points={p.name: {**dict.fromkeys(settings.axes), **p.known_values} for p in points},
    )


class _Table:
    """Rows of a sweep, published after each run."""

    def __init__(
        self, config: Config, folder: SweepFolder, record: SweepRecord, tasks: list[Task]
    ) -> None:
        from pipeline.runtime.ranks import ALONE

        self._workspace = config.workspace
        self._folder = folder
        self._record = record
        self._students = Students(ranks=ALONE, log_results=False)
        self._rows = known_rows(config, folder, tasks)

    @property
    def rows(self) -> list[SweepRow]:
        """Rows of the runs that were tried, in the order of points and seeds."""
        order = list(self._record.points)
        return sorted(
            self._rows.values(),
            key=lambda row: (order.index(row.point), self._record.seeds.index(row.seed)),
        )

    def fill(self, tasks: Sequence[Task]) -> None:
        """Run these tasks in turn."""
        from pipeline.runtime.progress import naming

        for number, task in enumerate(tasks, start=1):
            if task.config is not None:
                begun = (number, len(tasks), task.point.name, task.seed)
                logger.info("run %d of %d: %s, seed %d", *begun)
            with naming(f"run {number} of {len(tasks)}"):
                row = self._try(task)
            self._rows[task.key] = row
            rows = self.rows
            self._folder.write_results(self._record, rows, statistics(self._record, rows))
            if task.config is not None:  # rejected points were reported at the start
                line = f"{number} of {len(tasks)}: {describe(row)}{self._time_left(tasks[number:])}"
                logger.log(logging.INFO if row.status == OK else logging.WARNING, "%s", line)

    def _try(self, task: Task) -> SweepRow:
        if task.config is None:
            refusal = Failure(kind="ConfigError", line=task.point.refusal)
            return task.failed_row(refusal, traceback=None)
        config = task.config
        found = attempt(lambda: self._students.train(config))
        if not isinstance(found, Failure):
            self._folder.forget_traceback(task.settings)
            return task.row(found, config)
        kept = None
        if found.traceback is not None:
            kept = self._folder.write_traceback(task.settings, found.traceback)
        return task.failed_row(found, traceback=kept)

    def _time_left(self, tasks: Sequence[Task]) -> str:
        """Estimate the time for these tasks, with evaluation and loading as in the runs so far."""
        left = [
            task.point.name for task in tasks if task.config is not None and not self._is_done(task)
        ]
        seconds = seconds_left(self.rows, left)
        if not left or seconds is None:
            return ""
        students = self._students
        if students.training_seconds > 0:
            seconds *= max(1.0, students.wall_seconds / students.training_seconds)
        return f" ({len(left)} left, about {duration(seconds)})"

    def _is_done(self, task: Task) -> bool:
        row = self._rows.get(task.key)
        return row is not None and row.status == OK
