"""Commands in several ranks, each a process forked from one that has imported everything.

As torchrun starts them, but for seconds of imports; `heartcut launch` itself has a test of its own.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore

import cli
from tests.commands import ROOT, Finished


class Job:
    """The ranks of one command."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.pids: list[int] = json.loads(server.stdout.readline())

    def signal(self, rank: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)

    @property
    def is_running(self) -> bool:
        return all(Path(f"/proc/{pid}").exists() for pid in self.pids)

    def wait(self) -> list[Finished]:
        codes = json.loads(self._server.stdout.readline())
        return [
            Finished(code=code, out=self._read(rank, "out"), err=self._read(rank, "err"))
            for rank, code in enumerate(codes)
        ]

    def _read(self, rank: int, name: str) -> str:
        return (self._folder / f"{rank}.{name}").read_text()


class RankServer:
    """Forks the ranks of one job at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rank_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The numbers of one process depend on its threads, so it has as many as each rank.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )

    def start(self, folder: Path, world: int, *arguments: object) -> Job:
        folder.mkdir(parents=True)
        request = {"folder": str(folder), "world": world, "arguments": [*map(str, arguments)]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Job(self._process, folder)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class _Request:
    folder: str
    world: int
    arguments: list[str]


def serve() -> None:
    """For every line of stdin fork its ranks; tell their pids, then their codes. Ranks return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        request = _Request(**json.loads(line))
        # As torchrun's agent holds it: a store that outlives any rank.
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        pids: list[int] = []
        for rank in range(request.world):
            child = os.fork()
            if child == 0:
                _become(rank, request, store.port)
                return
            pids.append(child)
        _say(pids)
        _say([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
        del store
    os._exit(0)


def _become(rank: int, request: _Request, port: int) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{request.folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request.world))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    sys.argv = ["heartcut", *request.arguments]


def _say(numbers: list[int]) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    from torch import _dynamo  # noqa: F401 - four seconds, which the first optimiser takes else

    from stages import compare  # noqa: F401 - torch, ffcv and all stages load here

    serve()
    cli.main()
