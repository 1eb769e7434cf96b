"""Running `heartcut`: in this process, or as a process of its own that can be interrupted.

Starting Python and importing torch costs seconds. So one server imports everything once and forks
a process for every command; only what a command does is left to be waited for.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

import cli

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def shell_code(self) -> int:
        """The exit code as a shell tells it: 130 also where Python ended itself by SIGINT.

        CPython does so, whatever the exit code is, if the interrupt passed through C code that
        runs Python source, as some imports do.
        """
        return 128 - self.code if self.code < 0 else self.code

    @property
    def error_line(self) -> str:
        """The one line that a user's mistake is told in."""
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


class Forked:
    """A command in a process of its own."""

    def __init__(self, server: subprocess.Popen[str], pid: int, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.pid = pid

    @property
    def is_running(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()  # the server reaps it at once

    def wait(self) -> Finished:
        """The exit code is negative where a signal ended the process."""
        code = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))
        return Finished(code=code, out=self._read("out"), err=self._read("err"))

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_text() if path.exists() else ""


class Server:
    """Forks one command at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, *arguments: object) -> Forked:
        """Start `heartcut` with its output in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        request = {"folder": str(folder), "arguments": ["heartcut", "-q", *map(str, arguments)]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Forked(self._process, int(self._process.stdout.readline()), folder)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Fork a child for every line of stdin; tell its pid, then its status. Children return."""
    # A shell starts what runs in the background with interrupts ignored, and children inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            for descriptor, name in ((1, "out"), (2, "err")):
                file = os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT)
                os.dup2(file, descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = request["arguments"]
            return
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    from torch import _dynamo  # noqa: F401 - four seconds, which the first optimiser takes else

    from stages import compare  # noqa: F401 - torch, ffcv and all stages load here

    serve()
    cli.main()
