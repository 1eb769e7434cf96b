"""Commands as processes of their own that can be killed, in one rank or in several.

Starting Python and importing torch costs seconds. So one server imports everything once and forks
a process for every command; only what a command does is left to be waited for. Several commands
may run at once. Ranks are started as torchrun starts them; `heartcut launch` has its own test.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import cli
from tests.support.commands import ROOT, Finished


class Job:
    """The processes of one command: one, or its ranks."""

    def __init__(self, events: TextIO, folder: Path) -> None:
        self._events = events
        self._folder = folder
        self.pids: list[int] = json.loads(events.readline())

    @property
    def is_running(self) -> bool:
        """Check that no process has ended; those that have are reaped at once, in their order."""
        return all(Path(f"/proc/{pid}").exists() for pid in self.pids)

    def signal(self, number: int, *, rank: int = 0) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)

    def wait(self) -> Finished:
        """Result of the only process; the exit code is negative if a signal ended it."""
        (ended,) = self.wait_for_ranks()
        return ended

    def wait_for_ranks(self) -> list[Finished]:
        with self._events:
            codes = json.loads(self._events.readline())
        return [
            Finished(code=code, out=self._read(rank, "out"), err=self._read(rank, "err"))
            for rank, code in enumerate(codes)
        ]

    def _read(self, rank: int, name: str) -> str:
        path = self._folder / f"{rank}.{name}"
        return path.read_text() if path.exists() else ""


class Server:
    """Forks a process, or one for every rank, for each command."""

    def __init__(self, setup: str = "") -> None:
        """``setup`` is Python code that runs first, to set a constant of the product."""
        serving = "import runpy; runpy.run_module('tests.support.command_server', None, '__main__')"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{setup}\n{serving}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # as `heartcut` sets it for ranks
        )

    def start(self, folder: Path, *arguments: object) -> Job:
        """Start `heartcut -q` with its output in ``folder``."""
        return self._start(folder, None, "-q", *arguments)

    def start_ranks(self, folder: Path, world: int, *arguments: object) -> Job:
        """Start `heartcut` in ``world`` processes of a thread each, on which numbers depend."""
        return self._start(folder, world, *arguments)

    def _start(self, folder: Path, world: int | None, *arguments: object) -> Job:
        folder.mkdir(parents=True, exist_ok=True)
        events = folder / "events"
        events.unlink(missing_ok=True)
        os.mkfifo(events)
        request = {"folder": str(folder), "world": world, "arguments": [*map(str, arguments)]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Job(events.open(), folder)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class _Request:
    folder: str
    world: int | None
    arguments: list[str]


def serve() -> None:
    """For every line of stdin fork one that looks after a command. The command's own return."""
    # A shell starts what runs in the background with interrupts ignored, and children inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        if os.fork() == 0:
            _look_after(_Request(**json.loads(line)))
            return
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def _look_after(request: _Request) -> None:
    """Fork the command's processes; send their pids, then their codes. Those processes return."""
    # Until `_run`: the command cannot report an interrupt before its own code runs.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with Path(request.folder, "events").open("w", buffering=1) as events:
        store = None if request.world is None else _store()
        pids: list[int] = []
        for rank in range(request.world or 1):
            child = os.fork()
            if child == 0:
                _become(rank, request, store)
                return
            pids.append(child)
        events.write(json.dumps(pids) + "\n")
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        events.write(json.dumps(codes) + "\n")
    os._exit(0)


def _store() -> object:
    """As torchrun's agent holds it: a store that outlives any rank."""
    from torch.distributed import TCPStore

    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def _become(rank: int, request: _Request, store: object) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{request.folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if store is not None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request.world))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(store.port))
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", OMP_NUM_THREADS="1")
    sys.argv = ["heartcut", *request.arguments]


def _run() -> None:
    """`cli.main`, with interrupts from the moment on when it can report them."""
    app = cli.app

    def interruptible() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        app()

    cli.app = interruptible
    cli.main()


if __name__ == "__main__":
    # What commands import when they need it; the first optimiser imports `_dynamo`.
    import torchvision  # noqa: F401
    from sklearn import metrics  # noqa: F401
    from torch import _dynamo  # noqa: F401

    import pipeline.artefacts.zarr_store  # noqa: F401
    from stages import (  # noqa: F401 - torch and ffcv load here
        cache_teacher,
        compare,
        prepare,
        select,
        train_student,
        train_teacher,
    )

    serve()
    _run()
