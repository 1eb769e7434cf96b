"""Complete commands for messages: heartcut with the same configuration and overrides."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import PrivateAttr

from pipeline.errors import PipelineError
from stages.config.command_lines import command_line, complete
from stages.config.types import Section

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
