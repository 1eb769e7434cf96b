"""What a sweep would do, without doing any of it."""

from collections import Counter

from pipeline.artefacts.sweep import FAILED, OK, sweep_folder
from stages.config.root import Config
from stages.sweep.points import baseline_of, sweep_points
from stages.sweep.report import as_table, duration
from stages.sweep.results import seconds_left
from stages.sweep.tasks import EVERYTHING, Part, known_rows, tasks_of


def execute(config: Config, part: Part = EVERYTHING) -> str:
    """The points, how many of their runs are done and left, and about how long these take.

    Done are the runs that the sweep's table has. A run that another command made is found when its
    turn comes.

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
    lines = [as_table([("point", "done", "left", "of these failed before"), *cells]), ""]
    lines += [f"refused: {p.name}: {p.refusal}" for p in points if p.config is None]
    seconds = seconds_left(done, list(left.elements()))
    time = "" if seconds is None or not left else f", about {duration(seconds)} of training"
    lines.append(f"{len(tasks)} runs: {len(done)} done, {left.total()} left{time}.")
    return "\n".join(lines)
