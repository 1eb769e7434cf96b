"""Training the students of a sweep, each after whatever it needs first."""

import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from pipeline.artefacts.run import Run
from pipeline.errors import PipelineError, Terminated
from stages import cache_teacher, select, train_student, train_teacher
from stages.config.root import Config
from stages.sweep.tasks import Failure

T = TypeVar("T")
_OF_A_CACHE = {"views", "train_teacher", "cache_teacher", "caches", "share"}


class Students:
    """Trains students; makes what they learn from once, and remembers where that failed."""

    def __init__(self) -> None:
        self._made: dict[str, Failure | None] = {}
        self.training_seconds = 0.0
        """Of the runs that were trained here, as they count it themselves."""
        self.wall_seconds = 0.0
        """What these runs took, evaluations and all."""

    def train(self, config: Config) -> Run | Failure:
        """The run of ``config``: trained, found, or why it is not there."""
        failure = self._teach(config)
        if failure is not None:
            return failure
        before = set(config.runs_folder.glob("*"))
        started = time.monotonic()
        run = attempt(lambda: train_student.execute(config, log_result=False))
        if isinstance(run, Run) and run.path not in before:
            self.wall_seconds += time.monotonic() - started
            self.training_seconds += run.result.cost.seconds
        return run

    def _teach(self, config: Config) -> Failure | None:
        """Make the cache and the selection, if the student needs them."""
        student = config.train_student
        if not student.distil:
            return None
        needs_cache = config.select.cache is None and (
            student.selection is None or student.needs_features
        )
        failure = None
        if needs_cache or student.online:
            settings = config.model_dump_json(include=_OF_A_CACHE)
            failure = self._once(
                f"{settings} {needs_cache}", lambda: _ask_teacher(config, caches=needs_cache)
            )
        if failure is None and student.selection is None:
            settings = config.model_dump_json(include={*_OF_A_CACHE, "select"})
            failure = self._once(settings, lambda: select.execute(config))
        return failure

    def _once(self, what: str, make: Callable[[], object]) -> Failure | None:
        if what not in self._made:
            made = attempt(make)
            self._made[what] = made if isinstance(made, Failure) else None
        return self._made[what]


def attempt(make: Callable[[], T]) -> T | Failure:
    """What ``make`` returns, or why it failed; interrupts and requests to end pass."""
    try:
        return make()
    except Terminated:
        raise
    except PipelineError as error:
        return Failure(kind=type(error).__name__, line=_one_line(error))
    except Exception as error:
        # Everywhere else a bug ends the program. Here one run of many would take a night of others
        # with it, and what it says is kept: its class, its message and its traceback.
        kind = type(error).__name__
        line = f"{kind}: {_one_line(error)}" if str(error) else kind
        return Failure(kind=kind, line=line, traceback=traceback.format_exc())


def _ask_teacher(config: Config, *, caches: bool) -> None:
    """Train the teacher where there is no checkpoint, and cache what it says."""
    if config.cache_teacher.checkpoint is None:
        train_teacher.execute(config)
    if caches:
        cache_teacher.execute(config)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
