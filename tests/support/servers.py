"""Real servers on the loopback interface, for the tests of object stores.

SeaweedFS is a true S3 server with signatures and conditional creation; nanio ignores conditions;
two plain HTTP servers answer with and without ranges.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import PipelineError

BUCKET = "cache"
SECRETS = {
    "rw": ("RWKEYAKIA7Q2", "rw-s3cr3t-kx81"),
    "ro": ("ROKEYAKIA9Z4", "ro-s3cr3t-pm52"),
}
"""Identity -> (access key, secret): words that occur nowhere else, so that a leak is found."""
READY_SECONDS = 30
_WHILE_STARTING = ("status 500", "could not be reached")

# The kernel kills the server when the thread that started it ends, however that comes about.
# (A `preexec_fn` would do the same, but it forks a process that may have threads.)
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Server:
    """A server process with a data folder that outlives it."""

    command: list[str]
    environment: dict[str, str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; RuntimeError with the end of its log if not."""
        tie = [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                tie + self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the keyboard is the tests' alone
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it at once, as a power cut would; fine if it is not running."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def restart(self, kept: ObjectStore, key: str) -> None:
        """Kill it and start it again on the same data and port.

        It answers before it has found its data again, and 500 or nothing to readers and writers
        until then: wait until it gives back ``key`` of ``kept`` and takes an object beside it.
        """
        self.kill()
        self.start()
        deadline = time.monotonic() + READY_SECONDS
        beside = open_objects(f"s3://{BUCKET}/restarted")
        while True:
            try:
                kept.read(key, max_bytes=1 << 20)
                beside.create(uuid.uuid4().hex, os.urandom(20_000))
                return
            except PipelineError as error:
                is_starting = any(sign in str(error) for sign in _WHILE_STARTING)
                if not is_starting or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                end = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command[0]} did not start:\n{end}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/{BUCKET}", timeout=2) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403  # it asks for a signature, so it is there
        except OSError:
            return False


def free_ports(count: int) -> list[int]:
    """Ports that are free now, with ``port + 10000`` free as well: SeaweedFS uses that for gRPC."""
    ports: list[int] = []
    # Both below 32768, from where the kernel gives ports to anybody who connects; and apart from
    # those of other processes of tests.
    start = 11000 + os.getpid() * 97 % 9000
    for port in range(start, start + 2000):
        if all(_is_free(number) for number in (port, port + 10000)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def s3_environment(server: Server, identity: str = "rw", **changes: str) -> dict[str, str]:
    """The environment variables with which a user reaches ``server``."""
    key, secret = SECRETS[identity]
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        **changes,
    }


def _identities() -> dict[str, list[dict[str, object]]]:
    actions = {
        "rw": ["Admin", "Read", "Write", "List"],
        "ro": [f"Read:{BUCKET}", f"List:{BUCKET}"],
    }
    return {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": actions[name],
            }
            for name, (key, secret) in SECRETS.items()
        ]
    }


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """A SeaweedFS server with the bucket `cache` and the identities of `SECRETS`."""
    (folder / "data").mkdir()
    (folder / "identities.json").write_text(json.dumps(_identities()))
    s3, master, volume, filer = free_ports(4)
    command = [
        _program("weed"),
        f"-logdir={folder}",
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-s3.config={folder / 'identities.json'}",
        f"-bucket={BUCKET}",
        "-volume.max=4",
    ]
    yield from _running(command, f"http://127.0.0.1:{s3}", folder, {})


@contextmanager
def nanio(folder: Path) -> Iterator[Server]:
    """An S3 server that silently ignores ``If-None-Match``."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    (port,) = free_ports(1)
    command = [_program("nanio"), "serve", f"--data-dir={folder / 'data'}"]
    command += ["--host=127.0.0.1", f"--port={port}", "--no-access-log"]
    key, secret = SECRETS["rw"]
    login = {"NANIO_ACCESS_KEY": key, "NANIO_SECRET_KEY": secret}
    yield from _running(command, f"http://127.0.0.1:{port}", folder, login)


def _running(
    command: list[str], url: str, folder: Path, environment: dict[str, str]
) -> Iterator[Server]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # Its home is the data folder: some servers read or write settings there.
    home = {"HOME": str(folder), **environment}
    server = Server(command, plain | home, url, folder / "server.log")
    server.start()
    try:
        yield server
    finally:
        server.kill()


class WithoutRanges(SimpleHTTPRequestHandler):
    """Python's own handler: it knows no ranges and always answers with the whole file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class WithRanges(WithoutRanges):
    """A handler that answers ``Range: bytes=first-last`` with that part."""

    def do_GET(self) -> None:
        """Answer a range with 206, anything else as ever."""
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last) + 1 if last else len(content), len(content))
        part = content[int(first) : end]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextmanager
def http_server(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    """Serve ``folder`` read-only from a thread; yields the address."""
    make: Callable[..., SimpleHTTPRequestHandler] = partial(handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), make)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers; yields its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One SeaweedFS for the whole run; a test uses a folder of its own in the bucket."""
    with seaweedfs(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def nanio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One nanio for the whole run."""
    with nanio(tmp_path_factory.mktemp("nanio")) as server:
        yield server
