"""Requests to stop: a signal becomes a request, and the process stops where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Terminated
from pipeline.runtime.ranks import Poll, Ranks

ENDED = "terminated: run the same command to resume"


class StopRequest:
    """Signal that asked this process to stop, if there was one."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_there(self) -> bool:
        return self._signal is not None

    def raise_if_stopped(self) -> None:
        """Stop now, if that was requested.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM or SIGHUP.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise Terminated(ENDED)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:  # a second signal: stop at once
            self._signal = number
            self.raise_if_stopped()
        self._signal = number


class SharedStopRequest:
    """Request of any rank: all ranks stop at the same step; a single process at its own."""

    def __init__(self, own: StopRequest, ranks: Ranks) -> None:
        self._own, self._ranks, self._poll = own, ranks, Poll(ranks)
        self._is_agreed = False

    @property
    def is_there(self) -> bool:
        return self._is_agreed if self._ranks.are_many else self._own.is_there

    def ask(self, is_due: bool) -> bool:
        """Ask all ranks for requests; return True if a checkpoint is due for any of them."""
        stops, any_due = self._poll.answers(self._own.is_there, is_due)
        self._is_agreed |= stops
        return any_due

    def settle(self) -> None:
        """Ask all ranks at a place where they may wait for each other."""
        self._poll.last()
        self._is_agreed |= self._ranks.any(self._own.is_there)

    def raise_if_stopped(self) -> None:
        """Stop now, if that was requested from any rank.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM or SIGHUP, or where another rank received the signal.
        """
        if self._ranks.are_many and not self._is_agreed:
            return
        if self._ranks.are_many:
            self._ranks.wait()  # the end of one rank could stop the others at once
        self._own.raise_if_stopped()
        if self._ranks.are_many:
            raise Terminated(ENDED)


@contextmanager
def catching_stop_signals() -> Iterator[StopRequest]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into requests for a while; a second signal stops at once.

    What the process ignores stays ignored. Signals reach only the main thread: in other threads
    there is never a request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = [signal.signal(number, request._heard) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)
