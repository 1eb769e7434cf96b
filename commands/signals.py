"""Signals that end a command: it ends as after an interrupt, with one line and nothing unfinished.

A signal that is ignored stays ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT for what
runs in the background.
"""

import os
import signal
from types import FrameType

from commands.one_voice import is_one_of_many
from pipeline.errors import Terminated

ENDING = (signal.SIGTERM, signal.SIGHUP)


def is_ignored(number: signal.Signals) -> bool:
    """Report if this process ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


def end_with_one_line() -> None:
    """Let signals that end the process raise `Terminated`.

    Ranks keep the default, except while they train: one that waits for another in C code would not
    end, because Python handles signals between two lines of its own.
    """
    if is_one_of_many():
        return
    main = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != main:  # a forked worker, which its parent ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Terminated(terminated(number))

    for number in ENDING:
        if not is_ignored(number):
            signal.signal(number, end)


def terminated(number: int) -> str:
    """Message of a command that a signal ended."""
    why = " because the terminal was closed" if number == signal.SIGHUP else ""
    keep = "; `nohup` keeps it running" if number == signal.SIGHUP else ""
    name = signal.Signals(number).name
    return f"terminated by {name}{why}: run the same command to resume{keep}"
