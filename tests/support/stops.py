"""Trainings that are asked to stop after some steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from pipeline.errors import Terminated
from stages.training import trainer


class StopsAfter:
    """A wish to stop that comes after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def is_there(self) -> bool:
        return self._left <= 0

    def raise_if_stopped(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Terminated("stopped by the test")


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """Every training within raises `Terminated` after ``steps`` steps, and keeps a checkpoint."""

    @contextmanager
    def requests() -> Iterator[StopsAfter]:
        yield StopsAfter(steps)

    with patch.object(trainer, "catching_stop_signals", requests):
        yield
