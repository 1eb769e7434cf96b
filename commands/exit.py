"""Exit codes, and the end of a command without the seconds in which Python takes torch apart again.

A command has nothing to do once the files it wrote are closed, the threads it waits for have ended
and everybody who asked to be told of the end (`atexit`) was told. Python would then still free each
module and object that was imported: about two seconds of every command.
"""

import atexit
import os
import sys
from collections.abc import Callable

FAILED, DAMAGED, DIFFERENT, INCOMPLETE, PEER_LOST, INTERRUPTED, TERMINATED = 1, 3, 4, 5, 6, 130, 143
"""Exit codes; 2 is a wrong command line."""

_code: int | None = None
"""What to end with; None = as Python does."""


def run_and_exit(command: Callable[[], None]) -> None:
    """Call the entry point of a process, then let the process end at once.

    Raises:
        SystemExit: as ``command`` does; the exit code stays.
    """
    global _code
    try:
        command()
    except SystemExit as end:
        _code = _number(end.code)
        raise
    _code = 0


def _number(code: object) -> int | None:
    """The exit code, where Python does not have to print anything first."""
    if code is None:
        return 0
    return code if isinstance(code, int) else None


@atexit.register  # before torch is imported, and what is registered first is called last
def _end() -> None:
    if _code is None:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # Python tells of output that got lost
    os._exit(_code & 0xFF)
