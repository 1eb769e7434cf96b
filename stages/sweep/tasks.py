"""What a sweep has to do, one point under one seed each, and the rows that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.artefacts.run import Run
from pipeline.artefacts.sweep import FAILED, OK, SweepFolder, SweepRow
from pipeline.errors import ConfigError
from stages.config.root import Config
from stages.sweep.points import Point, settings_id, with_seed


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run is not there."""

    kind: str
    """Class of the error."""
    line: str
    traceback: str | None = None
    """None for a user's mistake, which the line tells."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One point under one seed."""

    point: Point
    seed: int
    config: Config | None
    """None: the point is refused."""
    settings: str
    """Hash of ``config``."""

    @classmethod
    def of(cls, point: Point, seed: int) -> "Task":
        config = None if point.config is None else with_seed(point.config, seed)
        settings = "" if config is None else settings_id(config)
        return cls(point=point, seed=seed, config=config, settings=settings)

    @property
    def key(self) -> tuple[str, int]:
        return self.point.name, self.seed

    def row(self, run: Run, config: Config) -> SweepRow:
        """The row of a run; of the test images it says nothing."""
        result = run.result
        return SweepRow(
            point=self.point.name,
            seed=self.seed,
            settings=self.settings,
            status=OK,
            run_id=result.id,
            run_path=str(run.path.relative_to(config.workspace)),
            held_out_mean_of_last=result.held_out_accuracy_mean_of_last,
            held_out_last=result.held_out_accuracy_last,
            held_out_best=result.held_out_accuracy_best,
            best_epoch=result.best_epoch,
            mean_of_last=result.mean_of_last,
            seconds=result.cost.seconds,
            images_per_second=result.cost.training_images_per_second,
            num_distilled=result.num_distilled,
            num_training_samples=result.num_training_samples,
        )

    def failed_row(self, failure: Failure, *, traceback: str | None) -> SweepRow:
        """The row of a failure, whose traceback lies in that file."""
        return SweepRow(
            point=self.point.name,
            seed=self.seed,
            settings=self.settings,
            status=FAILED,
            error_type=failure.kind,
            error=failure.line,
            traceback=traceback,
        )


def tasks_of(config: Config, points: Sequence[Point]) -> list[Task]:
    """Seed by seed, so that a sweep that is stopped has compared all points under some seeds."""
    return [Task.of(point, seed) for seed in config.sweep.seeds for point in points]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which runs of a sweep are wanted now; the others are for another time, or another machine."""

    points: tuple[str, ...] = ()
    """Names; () is all."""
    seeds: tuple[int, ...] = ()
    """() is all."""

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of ``tasks`` that are wanted, in the same order.

        Raises:
            ConfigError: if a point or a seed is none of the sweep's.
        """
        for kind, wanted, found in (
            ("point", self.points, [task.point.name for task in tasks]),
            ("seed", self.seeds, [task.seed for task in tasks]),
        ):
            for name in wanted:
                if name not in found:
                    raise ConfigError(
                        f"--{kind} {name}: the sweep has no such {kind} (expected "
                        f"{', '.join(map(str, dict.fromkeys(found)))}). Name one of them."
                    )
        return [task for task in tasks if self._wants(task)]

    def _wants(self, task: Task) -> bool:
        is_of_points = not self.points or task.point.name in self.points
        return is_of_points and (not self.seeds or task.seed in self.seeds)


EVERYTHING: Final = Part()


def known_rows(
    config: Config, folder: SweepFolder, tasks: Sequence[Task]
) -> dict[tuple[str, int], SweepRow]:
    """What the table says of these tasks, as far as their settings are the same and runs exist."""
    settings = {task.key: task.settings for task in tasks}
    return {
        (row.point, row.seed): row
        for row in folder.rows()
        if settings.get((row.point, row.seed)) == row.settings
        and (row.run_path is None or (config.workspace / row.run_path).is_dir())
    }
