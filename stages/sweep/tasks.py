"""Tasks of a sweep, one point with one seed each, and the training of their students.

The stages are imported where they run, so a dry run does not wait for torch.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pipeline.artefacts.run import Run
from pipeline.artefacts.sweep import FAILED, OK, SweepFolder, SweepRow
from pipeline.errors import ConfigError, PipelineError, Terminated
from stages.config.root import Config
from stages.sweep.points import Point, settings_id, with_seed
from stages.text import duration

if TYPE_CHECKING:
    from pipeline.runtime.ranks import Ranks

T = TypeVar("T")
_OF_A_CACHE = {"views", "train_teacher", "cache_teacher", "caches", "share"}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Reason why a run is missing."""

    kind: str
    """Class of the error."""
    line: str
    traceback: str | None = None
    """None for a user's mistake, which the line explains."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One point with one seed."""

    point: Point
    seed: int
    config: Config | None
    """None: the point is rejected."""
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
        """Make the row of a run, without its accuracy on the test images."""
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
        """Make the row of a failure; ``traceback`` names a file."""
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
    """List the tasks seed by seed, so a stopped sweep has compared all points with some seeds."""
    return [Task.of(point, seed) for seed in config.sweep.seeds for point in points]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a sweep to run now; the rest is for another time or another machine."""

    points: tuple[str, ...] = ()
    """Names; () means all."""
    seeds: tuple[int, ...] = ()
    """() means all."""

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Choose the tasks of this part, in the same order.

        Raises:
            ConfigError: if the sweep has no such point or seed.
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
    """Find the rows of these tasks whose settings are the same and whose runs exist."""
    settings = {task.key: task.settings for task in tasks}
    return {
        (row.point, row.seed): row
        for row in folder.rows()
        if settings.get((row.point, row.seed)) == row.settings
        and (row.run_path is None or (config.workspace / row.run_path).is_dir())
    }


class Students:
    """Trains students one after the other, each after the stages that it needs.

    A teacher, cache or selection is made once for all students that share it. If it failed, it is
    not tried again and fails for all of them.
    """

    def __init__(self, *, ranks: "Ranks", log_results: bool) -> None:
        self._ranks = ranks
        self._log_results = log_results
        self._tried: dict[str, Exception | None] = {}
        self.training_seconds = 0.0
        """Training time of the runs that were trained here, as their records have it."""
        self.wall_seconds = 0.0
        """Total time of these runs, with evaluation."""
        self.num_trained = 0

    def train(self, config: Config) -> Run:
        """Train the run of ``config``, or find it."""
        from stages import train_student

        self._teach(config)
        before = set(config.runs_folder.glob("*"))
        started = time.monotonic()
        run = train_student.execute(config, ranks=self._ranks, log_result=self._log_results)
        if run.path not in before:
            self.wall_seconds += time.monotonic() - started
            self.training_seconds += run.result.cost.seconds
            self.num_trained += 1
        return run

    def time_left(self, num_runs: int) -> str:
        """Estimate the time of runs like those trained here, in words; empty before the first."""
        if not self.num_trained:
            return ""
        return f" (about {duration(num_runs * self.wall_seconds / self.num_trained)} left)"

    def train_teacher(self, config: Config) -> None:
        """Train the teacher, unless the configuration has a checkpoint."""
        from stages import train_teacher

        if config.cache_teacher.checkpoint is None:
            settings = config.model_dump_json(include=_OF_A_CACHE)
            self._once(
                f"teacher {settings}", lambda: train_teacher.execute(config, ranks=self._ranks)
            )

    def cache_teacher(self, config: Config) -> None:
        """Cache the teacher's outputs; train the teacher first where there is no checkpoint."""
        from stages import cache_teacher

        self.train_teacher(config)
        settings = config.model_dump_json(include=_OF_A_CACHE)
        self._once(f"cache {settings}", lambda: cache_teacher.execute(config, ranks=self._ranks))

    def _teach(self, config: Config) -> None:
        """Make the cache and the selection, if the student needs them."""
        from stages import select

        student = config.train_student
        if not student.distil:
            return
        needs_cache = config.select.cache is None and (
            student.selection is None or student.needs_features
        )
        if needs_cache:
            self.cache_teacher(config)
        elif student.online:
            self.train_teacher(config)
        if student.selection is None:
            settings = config.model_dump_json(include={*_OF_A_CACHE, "select"})
            self._once(settings, lambda: select.execute(config, ranks=self._ranks))

    def _once(self, settings: str, make: Callable[[], object]) -> None:
        if settings not in self._tried:
            self._tried[settings] = None
            try:
                make()
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they hold networks and batches
                self._tried[settings] = error
                raise
        failed = self._tried[settings]
        if failed is not None:
            raise failed


def attempt(make: Callable[[], T]) -> T | Failure:
    """Call ``make``; return its result or its failure. Interrupts and requests to stop pass."""
    try:
        return make()
    except Terminated:
        raise
    except PipelineError as error:
        return Failure(kind=type(error).__name__, line=_one_line(error))
    except Exception as error:
        # Elsewhere a bug ends the program. Here it would end a night of other runs too, so its
        # class, message and traceback are kept.
        kind = type(error).__name__
        line = f"{kind}: {_one_line(error)}" if str(error) else kind
        return Failure(kind=kind, line=line, traceback=traceback.format_exc())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
