"""Being asked to stop: a signal becomes a wish, obeyed where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Terminated
from pipeline.runtime.ranks import Poll, Ranks

ENDED = "terminated: nothing half-written was left under a final name"


class StopWish:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_there(self) -> bool:
        return self._signal is not None

    def obey(self) -> None:
        """Stop now, if it was asked for.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise Terminated(ENDED)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:  # asked twice: at once
            self._signal = number
            self.obey()
        self._signal = number


class SharedWish:
    """The wish of any rank, which all of them obey at the same step; alone, one's own."""

    def __init__(self, own: StopWish, ranks: Ranks) -> None:
        self._own, self._ranks, self._poll = own, ranks, Poll(ranks)
        self._is_agreed = False

    @property
    def is_there(self) -> bool:
        return self._is_agreed if self._ranks.are_many else self._own.is_there

    def ask(self, is_due: bool) -> bool:
        """Ask the ranks for wishes, and whether a checkpoint is due for any of them."""
        stops, any_due = self._poll.answers(self._own.is_there, is_due)
        self._is_agreed |= stops
        return any_due

    def settle(self) -> None:
        """Ask at a place where the ranks may wait for each other."""
        self._poll.last()
        self._is_agreed |= self._ranks.any(self._own.is_there)

    def obey(self) -> None:
        """Stop now, if any rank was asked to.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM, or where another rank was asked.
        """
        if self._ranks.are_many and not self._is_agreed:
            return
        if self._ranks.are_many:
            self._ranks.wait()  # a rank that has ended could have the others stopped at once
        self._own.obey()
        if self._ranks.are_many:
            raise Terminated(ENDED)


@contextmanager
def hearing_stop_wishes() -> Iterator[StopWish]:
    """Take Ctrl-C and SIGTERM as wishes for a while; a second one stops at once.

    Signals reach the main thread alone: elsewhere no wish is ever there.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(number, wish._heard) for number in numbers]
    try:
        yield wish
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)
