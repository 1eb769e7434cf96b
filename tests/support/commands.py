"""Running `heartcut` in this process."""

import logging
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

import cli

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def shell_code(self) -> int:
        """The exit code as a shell reports it: 130 also if Python ended itself by SIGINT.

        CPython does so, whatever the exit code is, if the interrupt passed through C code that
        runs Python source, as some imports do.
        """
        return 128 - self.code if self.code < 0 else self.code

    @property
    def error_line(self) -> str:
        """The only line of output about a user's mistake."""
        assert self.code == 1, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        assert self.out == "", self
        return self.err.strip()


def heartcut(*arguments: object, quiet: bool = True) -> Finished:
    """Run a command in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # the command sets its own and would close these
    try:
        result = CliRunner().invoke(cli.app, [*["-q"] * quiet, *map(str, arguments)])
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Finished(code=result.exit_code, out=result.stdout, err=result.stderr)
