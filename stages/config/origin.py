"""Complete commands for messages: heartcut with the same configuration and overrides."""

import re
import shlex
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import PrivateAttr

from pipeline.errors import PipelineError
from stages.config.types import Section

_NOT_READ = {
    "prepare": ("train_teacher", "cache_teacher", "select", "train_student", "compare", "sweep"),
    "train-teacher": ("cache_teacher", "select", "train_student", "compare", "sweep"),
    "cache-teacher": ("select", "train_student", "compare", "sweep"),
    "select": ("train_student", "compare", "sweep"),
}
"""Tables that a command does not read, so its overrides can leave them out."""
_TAKE_A_CONFIGURATION = (
    *("prepare", "train-teacher", "cache-teacher", "select", "train-student"),
    *("compare", "sweep", "report", "cache estimate"),
)
_WITHOUT = re.compile(rf"`heartcut ({'|'.join(_TAKE_A_CONFIGURATION)})(?=`| --)")
"""A command in a message without its configuration."""
Configured = TypeVar("Configured", bound="WithOrigin")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


class WithOrigin(Section):
    """Settings that know the file and the overrides that they were read from."""

    _path: str = PrivateAttr(default="")
    _overrides: tuple[str, ...] = PrivateAttr(default=())

    def __eq__(self, other: object) -> bool:
        """Equal settings are equal, wherever they were read from."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def read_from(self, path: str, overrides: tuple[str, ...]) -> None:
        """Remember the file, and the ``table.key=value`` overrides in their order."""
        self._path, self._overrides = path, overrides

    def with_origin_of(self, other: "WithOrigin", overrides: tuple[str, ...]) -> None:
        """Remember the file and the overrides of ``other``, and further overrides."""
        self.read_from(other._path, (*other._overrides, *overrides))

    @property
    def has_file(self) -> bool:
        """False for settings that were built in Python."""
        return bool(self._path)

    def command(self, stage: str) -> str:
        """The command line of a stage with this configuration, to paste.

        Overrides of tables that the stage does not read are left out. Settings that were built in
        Python have no file: CONFIG stands for it.
        """
        return command_line(stage, self._path or "CONFIG", self._overrides)


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


def with_complete_commands(
    run: Callable[Concatenate[Configured, Rest], Result],
) -> Callable[Concatenate[Configured, Rest], Result]:
    """Let the errors of a stage name complete commands.

    Parts of the pipeline know no configuration: their errors say `heartcut select`. The stage that
    calls them adds the file and its overrides.
    """

    @wraps(run)
    def completed(config: Configured, /, *args: Rest.args, **others: Rest.kwargs) -> Result:
        try:
            return run(config, *args, **others)
        except PipelineError as error:
            if config.has_file and len(error.args) == 1:
                error.args = (complete(str(error), config.command),)
            raise

    return completed
