"""Requests to stop: a signal becomes one, and the process stops where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Terminated
from pipeline.runtime.ranks import Poll, Ranks

ENDED = "terminated: nothing half-written was left under a final name"


class StopRequest:
    """The signal that asked this process to stop, if one did."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_there(self) -> bool:
        return self._signal is not None

    def raise_if_stopped(self) -> None:
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
            self.raise_if_stopped()
        self._signal = number


class SharedStopRequest:
    """The request of any rank: all of them stop at the same step; alone, one's own."""

    def __init__(self, own: StopRequest, ranks: Ranks) -> None:
        self._own, self._ranks, self._poll = own, ranks, Poll(ranks)
        self._is_agreed = False

    @property
    def is_there(self) -> bool:
        return self._is_agreed if self._ranks.are_many else self._own.is_there

    def ask(self, is_due: bool) -> bool:
        """Ask the ranks for requests, and whether a checkpoint is due for any of them."""
        stops, any_due = self._poll.answers(self._own.is_there, is_due)
        self._is_agreed |= stops
        return any_due

    def settle(self) -> None:
        """Ask at a place where the ranks may wait for each other."""
        self._poll.last()
        self._is_agreed |= self._ranks.any(self._own.is_there)

    def raise_if_stopped(self) -> None:
        """Stop now, if any rank was asked to.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM, or where another rank was asked.
        """
        if self._ranks.are_many and not self._is_agreed:
            return
        if self._ranks.are_many:
            self._ranks.wait()  # a rank that has ended could have the others stopped at once
        self._own.raise_if_stopped()
        if self._ranks.are_many:
            raise Terminated(ENDED)


@contextmanager
def catching_stop_signals() -> Iterator[StopRequest]:
    """Take Ctrl-C and SIGTERM as requests for a while; a second one stops at once.

    Signals reach the main thread alone: elsewhere no request is ever there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(number, request._heard) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)
