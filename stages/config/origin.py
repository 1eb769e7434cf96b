"""Commands for messages: how to call heartcut with the same configuration."""

import shlex

from pydantic import PrivateAttr

from stages.config.types import Section

_NOT_READ = {
    "prepare": ("train_teacher", "cache_teacher", "select", "train_student", "compare", "sweep"),
    "train-teacher": ("cache_teacher", "select", "train_student", "compare", "sweep"),
    "cache-teacher": ("select", "train_student", "compare", "sweep"),
    "select": ("train_student", "compare", "sweep"),
}
"""Tables that a command does not read, so its overrides can leave them out."""


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

    def command(self, stage: str) -> str:
        """The command line of a stage with this configuration, to paste.

        Settings that were built in Python have no file: CONFIG stands for it.

        >>> settings = WithOrigin()
        >>> settings.command("prepare")
        'heartcut prepare CONFIG'
        >>> settings.read_from("configs/digits.toml", ("select.eta=0.7", "train_student.seed=1"))
        >>> settings.command("select")
        'heartcut select configs/digits.toml --set select.eta=0.7'
        """
        last: dict[str, str] = {}
        for override in self._overrides:
            key = override.partition("=")[0].strip().replace("-", "_")
            if key.partition(".")[0] not in _NOT_READ.get(stage, ()):
                last.pop(key, None)
                last[key] = override
        parts = ["heartcut", stage, self._path or "CONFIG"]
        parts += [part for override in last.values() for part in ("--set", override)]
        return shlex.join(parts)
