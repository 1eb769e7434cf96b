"""Commands in messages, complete enough to paste: with the configuration and its overrides.

A stage does not know which file its configuration came from. The command does.
"""

import logging
import re
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

logger = logging.getLogger(__name__)

_TAKE_A_CONFIGURATION = (
    *("prepare", "train-teacher", "cache-teacher", "select", "train-student"),
    *("compare", "sweep", "report", "cache estimate"),
)
_REMEDY = re.compile(rf"`heartcut ({'|'.join(_TAKE_A_CONFIGURATION)})(?=`| --)")
"""A command in a message without its configuration."""
_used: ContextVar[tuple[str, ...]] = ContextVar("used", default=())
"""Arguments that name the configuration of this command; () before one is known."""


def begin() -> None:
    """Forget the configuration of an earlier command in this process."""
    _used.set(())


def use(places: Sequence[Path | str], overrides: Sequence[str] | None) -> None:
    """Remember the configuration among ``places``, if there is one, and its overrides."""
    config = next((str(place) for place in places if str(place).endswith(".toml")), None)
    if config is not None:
        _used.set((config, *(part for one in overrides or () for part in ("--set", one))))


def complete(message: str) -> str:
    """Add the configuration of this command to each remedy in ``message`` that lacks one."""
    return _REMEDY.sub(lambda found: f"`{command_line(found[1])}", message)


def suggest(command: str, *options: str) -> None:
    """Log the command that usually comes next."""
    logger.info("next: %s", command_line(command, *options))


def command_line(command: str, *options: str) -> str:
    """Write a command with the configuration of this one and the same overrides."""
    return " ".join(["heartcut", command, *map(shlex.quote, [*_used.get(), *options])])
