"""Log lines of a command: one line for each stage by default, details with `--verbose`."""

import logging
import sys
import warnings
from typing import Literal, TypeAlias

from pipeline.runtime.progress import write_above_bar

Verbosity: TypeAlias = Literal["quiet", "normal", "verbose"]

_OWN = ("stages", "pipeline", "commands")
_DETAILS = ("pipeline.influence", "matplotlib")
"""Loggers whose lines are details: solver diagnostics, fonts. Their warnings are always shown."""


def set_up_logs(verbosity: Verbosity, *, prefix: str = "") -> None:
    """Send log lines to stderr, each with ``prefix``; a progress bar is never torn by one.

    Args:
        verbosity: quiet: warnings. normal: also information, without details. verbose: everything,
            also what heartcut's own modules log for debugging.
        prefix: start of every line, for processes that share a terminal.
    """
    handler = _Lines(sys.stderr)
    if verbosity == "normal":
        handler.addFilter(_is_no_detail)
    logging.basicConfig(
        level=logging.WARNING if verbosity == "quiet" else logging.INFO,
        format=f"{prefix}%(message)s",
        handlers=[handler],
        force=True,
    )
    # An interrupt can abandon a coroutine of zarr before it begins; Python would report that too.
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    for name in _OWN:
        level = logging.DEBUG if verbosity == "verbose" else logging.NOTSET
        logging.getLogger(name).setLevel(level)


def _is_no_detail(record: logging.LogRecord) -> bool:
    is_detail = any(f"{record.name}.".startswith(f"{name}.") for name in _DETAILS)
    return record.levelno >= logging.WARNING or not is_detail


class _Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if not write_above_bar(self.format(record)):
            super().emit(record)
