"""Commands in messages, written with their configuration; it imports nothing that starts slowly."""

import re
import shlex
from collections.abc import Callable, Iterable

_LATER_TABLES = ("train_teacher", "cache_teacher", "select", "train_student", "compare", "sweep")
_NOT_READ = {
    stage: _LATER_TABLES[number:]
    for number, stage in enumerate(("prepare", "train-teacher", "cache-teacher", "select"))
}
"""Tables that a command does not read, so its overrides can leave them out."""
_TAKE_A_CONFIGURATION = (
    *("prepare", "train-teacher", "cache-teacher", "select", "train-student"),
    *("compare", "sweep", "report", "cache estimate"),
)
_WITHOUT = re.compile(rf"`heartcut ({'|'.join(_TAKE_A_CONFIGURATION)})(?=`| --)")
"""A command in a message without its configuration."""


def command_line(command: str, path: str, overrides: Iterable[str], *options: str) -> str:
    """Write a command with a configuration, the overrides that it reads, and options, to paste."""
    last: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0].strip().replace("-", "_")
        if key.partition(".")[0] not in _NOT_READ.get(command, ()):
            last.pop(key, None)
            last[key] = override
    parts = [path] if path else []
    parts += [part for override in last.values() for part in ("--set", override)]
    return " ".join(["heartcut", command, *map(shlex.quote, [*parts, *options])])


def complete(message: str, command: Callable[[str], str]) -> str:
    """Replace each command in ``message`` that has no configuration by what ``command`` gives."""
    return _WITHOUT.sub(lambda found: f"`{command(found[1])}", message)
