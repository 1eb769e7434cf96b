"""Exit codes, and an end of the command that does not wait for Python to free torch.

A command is done once its files are closed, its threads have ended and all `atexit` handlers have
run. Python would then still free each module and object: about two seconds of every command.
"""

import atexit
import os
import sys
from collections.abc import Callable

FAILED, DAMAGED, DIFFERENT, INCOMPLETE, PEER_LOST = 1, 3, 4, 5, 6
INTERRUPTED, READER_GONE, TERMINATED = 130, 141, 143
"""Exit codes; 2 is a wrong command line. Those above 128 are 128 and the number of a signal."""

_code: int | None = None
"""Exit code to end with; None: end as Python does."""


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
    """Exit code; None where Python has to print something first."""
    if code is None:
        return 0
    return code if isinstance(code, int) else None


@atexit.register  # before torch is imported: the first registered handler is called last
def _end() -> None:
    if _code is None:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # Python reports output that got lost
    os._exit(_code & 0xFF)
