"""Commands in messages, complete enough to paste: with the configuration and its overrides.

Errors of a stage are complete already (`stages.config.origin`); this is for all other messages.
"""

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from stages.config import command_lines

logger = logging.getLogger(__name__)

_used: ContextVar[tuple[str, tuple[str, ...]]] = ContextVar("used", default=("", ()))
"""The configuration of this command and its overrides; empty before one is known."""


def begin() -> None:
    """Forget the configuration of an earlier command in this process."""
    _used.set(("", ()))


def use(places: Sequence[Path | str], overrides: Sequence[str] | None) -> None:
    """Remember the configuration among ``places``, if there is one, and its overrides."""
    config = next((str(place) for place in places if str(place).endswith(".toml")), None)
    if config is not None:
        _used.set((config, tuple(overrides or ())))


def complete(message: str) -> str:
    """Add the configuration of this command to each remedy in ``message`` that lacks one."""
    return command_lines.complete(message, command_line)


def suggest(command: str, *options: str) -> None:
    """Log the command that usually comes next."""
    logger.info("next: %s", command_line(command, *options))


def command_line(command: str, *options: str) -> str:
    """Write a command with the configuration of this one and the same overrides."""
    path, overrides = _used.get()
    return command_lines.command_line(command, path, overrides, *options)
