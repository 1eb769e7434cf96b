"""sweep: one configuration -> the student under every point and seed, one table, one choice.

Runs whatever stages are missing: the teacher and its cache once for all points that share them, the
selection once for each point. What exists already is not made again, so a sweep that was stopped
goes on where it was, and only failed runs are tried again.
"""

import logging
from collections.abc import Sequence

from pipeline.artefacts.sweep import OK, SweepFolder, SweepRow, sweep_folder
from pipeline.artefacts.sweep_record import SweepRecord
from stages import prepare
from stages.config.root import Config
from stages.sweep.points import Point, baseline_of, sweep_points
from stages.sweep.report import describe, duration
from stages.sweep.results import COLUMN_OF, Sweep, look_at_test, seconds_left, statistics
from stages.sweep.students import Students
from stages.sweep.tasks import EVERYTHING, Failure, Part, Task, known_rows, tasks_of

logger = logging.getLogger(__name__)


def execute(config: Config, part: Part = EVERYTHING) -> Sweep:
    """Train every point of ``config.sweep`` under every seed, whatever becomes of single runs.

    Of a part the table is written as of the whole; nothing is chosen before all runs were tried.

    Raises:
        ConfigError: if the sweep is not well formed, or has no such part; nothing was run.
        PipelineError: if the images cannot be prepared, or the table cannot be written.
    """
    points = sweep_points(config)
    baseline = baseline_of(config, points)
    tasks = tasks_of(config, points)
    wanted = part.of(tasks)
    for point in points:
        if point.config is None:
            logger.warning("%s is refused: %s", point.name, point.refusal)
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
    """The rows of a sweep, published after each run."""

    def __init__(
        self, config: Config, folder: SweepFolder, record: SweepRecord, tasks: list[Task]
    ) -> None:
        self._workspace = config.workspace
        self._folder = folder
        self._record = record
        self._students = Students()
        self._rows = known_rows(config, folder, tasks)

    @property
    def rows(self) -> list[SweepRow]:
        """What was tried, in the order of points and seeds."""
        order = list(self._record.points)
        return sorted(
            self._rows.values(),
            key=lambda row: (order.index(row.point), self._record.seeds.index(row.seed)),
        )

    def fill(self, tasks: Sequence[Task]) -> None:
        """Try these tasks in turn."""
        for number, task in enumerate(tasks, start=1):
            row = self._try(task)
            self._rows[task.key] = row
            rows = self.rows
            self._folder.write_results(self._record, rows, statistics(self._record, rows))
            if task.config is not None:  # what is refused was told at once
                told = f"{number} of {len(tasks)}: {describe(row)}{self._time_left(tasks[number:])}"
                logger.log(logging.INFO if row.status == OK else logging.WARNING, "%s", told)

    def _try(self, task: Task) -> SweepRow:
        if task.config is None:
            refusal = Failure(kind="ConfigError", line=task.point.refusal)
            return task.failed_row(refusal, traceback=None)
        found = self._students.train(task.config)
        if not isinstance(found, Failure):
            self._folder.forget_traceback(task.settings)
            return task.row(found, task.config)
        kept = None
        if found.traceback is not None:
            kept = self._folder.write_traceback(task.settings, found.traceback)
        return task.failed_row(found, traceback=kept)

    def _time_left(self, tasks: Sequence[Task]) -> str:
        """Of these tasks; what evaluation and loading add is as for runs so far."""
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
