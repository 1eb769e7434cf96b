"""Being asked to stop: a signal becomes a wish, obeyed where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Terminated


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
            raise Terminated("terminated: nothing half-written was left under a final name")

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:  # asked twice: at once
            self._signal = number
            self.obey()
        self._signal = number


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
