"""One contract for every object store, against real servers on the loopback interface."""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.artefacts.objects import clients, naming, remote
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.objects.protocol import PROBE_KEY
from pipeline.artefacts.objects.remote import require_conditional_create
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError, PipelineError
from tests.support.cases import looped
from tests.support.servers import (
    BUCKET,
    SECRETS,
    WithoutRanges,
    WithRanges,
    http_server,
    s3_environment,
    seaweedfs,
    silent_server,
)

MB = 1 << 20
BAD_KEYS = ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a\\b", "a\0b", "a\nb"]
ODD_KEYS = ["a b", "50%20", "plus+", "é", "zarr.json", "c/0/1/2", ".hidden", "a=b&c"]


@pytest.fixture
def as_user(monkeypatch):
    """Set the environment of a user of a server: `as_user(server, "rw", NAME=value)`."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)

    def use(server, identity="rw", **changes):
        for name, value in s3_environment(server, identity, **changes).items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def s3_url(request):
    """A folder of its own in the bucket."""
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path, s3_url):
    if request.param == "local":
        return open_objects(tmp_path / "new" / "store")
    request.getfixturevalue("as_user")(request.getfixturevalue("seaweed"))
    return open_objects(s3_url)


@pytest.fixture(params=[WithoutRanges, WithRanges])
def http_store(request, tmp_path):
    """A store behind HTTP that holds ``run/a`` and the keys of `ODD_KEYS`."""
    local = open_objects(tmp_path / "served")
    for key in ["run/a", *ODD_KEYS]:
        local.create(key, key.encode() * 3)
    with http_server(tmp_path / "served", request.param) as url:
        yield open_objects(url)


def one_line(error):
    """The message of ``error``, which is one line."""
    assert isinstance(error.value, PipelineError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_created_is_read_back(store):
    assert store.create("a/b", b"bytes") is True
    assert store.read("a/b", max_bytes=5) == b"bytes"
    assert store.size("a/b") == 5
    assert store.create("empty", b"") is True
    assert store.read("empty", max_bytes=0) == b""
    assert store.size("empty") == 0


def test_equal_bytes_are_fine_and_other_bytes_fail(store):
    store.create("a", b"first")
    assert store.create("a", b"first") is False
    for other in [b"other", b"longer than first", b""]:
        with pytest.raises(ArtefactMismatch, match="non-determinism") as error:
            store.create("a", other)
        assert f"{store.url}/a" in one_line(error)
    assert store.read("a", max_bytes=100) == b"first"


def test_large_objects_are_created_once_too(store):
    data = os.urandom(6 * MB)  # beyond the size at which the client library would send parts
    assert store.create("large", data) is True
    assert store.create("large", data) is False
    with pytest.raises(ArtefactMismatch, match="non-determinism"):
        store.create("large", data[:-1] + bytes([data[-1] ^ 1]))
    assert store.read("large", max_bytes=6 * MB) == data


def test_missing_objects_are_reported(store):
    store.create("a/b", b"1")
    assert store.size("nothing") is None
    assert store.size("no/folder") is None
    with pytest.raises(ArtefactNotFound, match="does not exist") as error:
        store.read("no/folder", max_bytes=1)
    assert f"{store.url}/no/folder" in one_line(error)


def test_an_empty_store_lists_nothing(store):
    assert store.can_list
    assert store.sizes() == {}
    assert store.sizes("nothing") == {}
    assert store.folders() == []
    store.delete("nothing")
    store.delete("no/folder")


def test_listings_are_recursive_and_relative_to_the_store(store):
    keys = {"top": 1, "a/one": 2, "a/b/two": 3, "ab/three": 4}
    for key, size in keys.items():
        store.create(key, b"x" * size)
    assert store.sizes() == keys
    assert list(store.sizes()) == sorted(keys)
    assert store.sizes("a") == {"a/one": 2, "a/b/two": 3}
    assert store.folders() == ["a", "ab"]
    below = store.child("a")
    assert below.url == f"{store.url}/a"
    assert below.sizes() == {"one": 2, "b/two": 3}
    assert below.sizes("b") == {"b/two": 3}
    assert below.folders() == ["b"]
    assert below.read("one", max_bytes=2) == b"xx"
    assert below.child("b").read("two", max_bytes=3) == b"xxx"
    assert below.create("new", b"1")
    assert store.read("a/new", max_bytes=1) == b"1"
    below.delete("one")
    assert store.sizes() == {"a/b/two": 3, "a/new": 1, "ab/three": 4, "top": 1}


def test_many_objects_are_all_listed(store):
    keys = {f"many/{number:04}": 1 for number in range(60)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.create(key, b"1"), keys))
    assert store.sizes() == keys


def test_odd_names_come_back_unchanged(store):
    for key in ODD_KEYS:
        store.create(key, key.encode())
    assert set(store.sizes()) == set(ODD_KEYS)
    for key in ODD_KEYS:
        assert store.read(key, max_bytes=100) == key.encode()


def test_a_deleted_object_can_be_created_again(store):
    store.create("a/b", b"old")
    store.delete("a/b")
    assert store.size("a/b") is None
    store.delete("a/b")
    assert store.create("a/b", b"new") is True
    assert store.read("a/b", max_bytes=3) == b"new"


def test_an_object_larger_than_allowed_is_rejected(store):
    store.create("a", b"12345")
    with pytest.raises(ArtefactMismatch, match=r"5 bytes .*at most 4") as error:
        store.read("a", max_bytes=4)
    assert f"{store.url}/a" in one_line(error)


@looped("key", BAD_KEYS)
def test_keys_that_are_not_plain_names_are_rejected(store, key):
    uses = [
        lambda: store.read(key, max_bytes=1),
        lambda: store.size(key),
        lambda: store.create(key, b""),
        lambda: store.delete(key),
        lambda: store.child(key),
        lambda: store.sizes(key or "/"),
    ]
    for use in uses:
        with pytest.raises(ArtefactMismatch, match="relative name") as error:
            use()
        one_line(error)


@looped("key", ["a.partial", "a.partial/b", ".a.0.partial", PROBE_KEY])
def test_reserved_names_are_not_created(store, key):
    with pytest.raises(ArtefactMismatch, match="reserved"):
        store.create(key, b"")


def race(store, contents, rounds):
    """Each round lets every writer create one key at once; yields (created, seen) of each writer.

    The rounds run side by side: SeaweedFS lets the losers of a race wait for whole seconds.
    """
    starts = [threading.Barrier(len(contents), timeout=30) for _ in range(rounds)]

    def write(turn, data):
        starts[turn].wait()
        try:
            created = store.create(f"race/{turn}", data)
        except ArtefactMismatch:
            created = False
        return created, store.read(f"race/{turn}", max_bytes=20_000)

    with ThreadPoolExecutor(len(contents) * rounds) as pool:
        running = [[pool.submit(write, turn, data) for data in contents] for turn in range(rounds)]
        return [[answer.result() for answer in turn] for turn in running]


def test_of_racing_writers_exactly_one_wins(store):
    """8 writers, 20 rounds; the losers find the winner's bytes, never a part of them."""
    contents = [bytes([number]) * 20_000 for number in range(8)]
    for answers in race(store, contents, rounds=20):
        winners = [number for number, (created, _) in enumerate(answers) if created]
        assert len(winners) == 1
        assert {seen for _, seen in answers} == {contents[winners[0]]}


def test_racing_writers_of_equal_bytes_are_all_content(store):
    for answers in race(store, [b"same"] * 8, rounds=3):
        assert sorted(answers) == [(False, b"same")] * 7 + [(True, b"same")]


def test_a_good_store_passes_the_probe_again_and_again(store):
    for _ in range(3):
        require_conditional_create(store)
    assert store.sizes() == {}
    assert store.folders() == []


def test_a_local_store_leaves_no_temporaries(tmp_path):
    store = open_objects(tmp_path)
    store.create("a/b", b"1")
    store.create("a/b", b"1")
    with pytest.raises(ArtefactMismatch):
        store.create("a/b", b"2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_unfinished_files_of_a_killed_writer_are_not_listed(tmp_path):
    store = open_objects(tmp_path)
    store.create("a/b", b"1")
    (tmp_path / "a" / ".b.00ff.partial").write_bytes(b"half")
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "d").write_bytes(b"half")
    assert store.sizes() == {"a/b": 1}
    assert store.folders() == ["a"]


def test_links_are_not_followed_below_the_root(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")  # a root that is a link is fine
    store = open_objects(tmp_path / "root")
    store.create("fine", b"1")
    (tmp_path / "real" / "file").symlink_to(tmp_path / "secret")
    (tmp_path / "real" / "inside").symlink_to(tmp_path / "real" / "fine")
    (tmp_path / "real" / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "real" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "real" / "pipe")
    for key in ["file", "inside", "dangling", "out/secret", "pipe"]:
        for use in (store.size, lambda key: store.read(key, max_bytes=10)):
            with pytest.raises(ArtefactMismatch, match="link") as error:
                use(key)
            one_line(error)
        with pytest.raises(ArtefactMismatch):
            store.create(key, b"secret")
    with pytest.raises(ArtefactMismatch):
        store.create("out/new", b"1")
    with pytest.raises(ArtefactMismatch):
        store.delete("out/secret")
    for use in (lambda: store.sizes("out"), lambda: store.child("out").sizes()):
        with pytest.raises(ArtefactMismatch):
            use()
    assert store.sizes() == {"fine": 1}
    assert store.folders() == []
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert not (tmp_path / "new").exists()
    store.delete("file")  # quarantine removes the link, not what it points to
    assert (tmp_path / "secret").exists()


def test_folders_in_the_place_of_objects_are_reported(tmp_path):
    store = open_objects(tmp_path)
    store.create("a/b", b"1")
    for use in (store.size, store.delete, lambda key: store.read(key, max_bytes=1)):
        with pytest.raises(ArtefactMismatch) as error:
            use("a")
        one_line(error)
    with pytest.raises(ArtefactMismatch):
        store.create("a/b/c", b"1")
    with pytest.raises(PipelineError, match="Not a directory") as error:
        open_objects(tmp_path / "a" / "b").size("c")
    one_line(error)


def test_an_oversized_file_is_not_read(tmp_path, monkeypatch):
    store = open_objects(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing: reading it would end the test run
    monkeypatch.setattr(os, "fdopen", lambda *_, **__: pytest.fail("it was opened for reading"))
    with pytest.raises(ArtefactMismatch, match="too large"):
        store.read("huge", max_bytes=MB)


class Crash(BaseException):
    """Exception that ends a process at a chosen call."""


CALLS = ["open", "mkdir", "write", "fsync", "link", "unlink", "close"]


def crash_at(monkeypatch, number, failure):
    """Let the ``number``-th call of `CALLS` fail, before or after it took effect for close."""
    count = iter(range(1_000_000))
    reached = []

    def wrap(name, real):
        def call(*args, **kwargs):
            if next(count) == number and not reached:
                reached.append(name)
                if name == "close":
                    real(*args, **kwargs)  # the kernel closes even when it returns an error
                raise failure
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        wrap(name, getattr(os, name))
    return reached


@pytest.mark.parametrize("failure", [Crash(), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_crash_at_any_call_leaves_no_object_or_a_whole_one(tmp_path, failure):
    data, crashed = b"x" * 1000, []
    for number in range(100):
        root = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            reached = crash_at(patch, number, failure)
            with contextlib.suppress(Crash, KeyboardInterrupt, PipelineError):
                open_objects(root).create("a/b/c", data)
        if not reached:
            break
        crashed += reached
        store = open_objects(root)
        assert store.sizes() in ({}, {"a/b/c": 1000})
        litter = list(root.rglob("*.partial")) if root.exists() else []
        assert not litter or reached == ["unlink"]
        if litter:  # and then what lies under the name is whole
            assert store.sizes() == {"a/b/c": 1000}
        assert store.create("a/b/c", data) in (True, False)
        assert store.read("a/b/c", max_bytes=1000) == data
        with pytest.raises(ArtefactMismatch):
            store.create("a/b/c", b"other")
    assert {"open", "mkdir", "write", "fsync", "link", "unlink", "close"} == set(crashed)
    assert 10 < len(crashed) < 100


def test_bytes_are_synced_before_they_are_linked_and_names_after(tmp_path, monkeypatch):
    calls = []

    def note(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    store = open_objects(tmp_path)
    store.create("warm", b"")
    for name in ["write", "fsync", "link", "unlink"]:
        note(name, getattr(os, name))
    store.create("a", b"1")
    assert calls == ["write", "fsync", "link", "unlink", "fsync"]
    calls.clear()
    assert store.create("a", b"1") is False
    assert calls[-1] == "fsync"  # the one who came second promises durability as well


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data[:7])))
    store = open_objects(tmp_path)
    store.create("a", bytes(range(100)))
    assert store.read("a", max_bytes=100) == bytes(range(100))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_disk_errors_are_one_line(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "raw")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(PipelineError, match="could not be written") as error:
        open_objects(tmp_path).create("a", b"1")
    one_line(error)
    assert list(tmp_path.iterdir()) == []


def refuse(number):
    """A call of the system that a file system does not support."""

    def fail(*_, **__):
        raise OSError(number, "raw")

    return fail


WAYS = {"link": 0, "rename": 1, "locked claim": 2, "claim": 3}
"""Ways to give a name without overwriting, the best first; each file system has the last one."""


@pytest.fixture(params=WAYS)
def file_system(request, monkeypatch):
    """A file system that has only this way and the later ones."""
    missing = WAYS[request.param]
    if missing > 0:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    if missing > 1:
        monkeypatch.setattr(naming, "_rename_new", refuse(errno.EINVAL))
    if missing > 2:
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    return request.param


@pytest.mark.usefixtures("file_system")
def test_every_file_system_creates_once_and_overwrites_nothing(tmp_path):
    store = open_objects(tmp_path)
    assert store.create("a/b", b"1") is True
    assert store.create("a/b", b"1") is False
    with pytest.raises(ArtefactMismatch, match="other bytes"):
        store.create("a/b", b"2")
    assert store.read("a/b", max_bytes=1) == b"1"
    contents = [bytes([number]) * 20_000 for number in range(6)]
    for answers in race(store, contents, rounds=20):
        winners = [number for number, (created, _) in enumerate(answers) if created]
        assert len(winners) == 1
        assert {seen for _, seen in answers} == {contents[winners[0]]}
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("number", sorted(naming._NO_LINKS))
def test_a_file_system_may_refuse_links_by_any_of_its_errors(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", refuse(number))
    assert open_objects(tmp_path).create("a", b"1") is True
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_and_be_killed(root, call):
    """Create an object in a process that is killed at one call of the system."""
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        open_objects(root).create("a/b", b"x" * 1000)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("call", ["write", "fsync", "stat", "rename", "unlink"])
def test_a_kill_leaves_no_object_or_a_whole_one_without_links(tmp_path, monkeypatch, call):
    """The claim of a killed process is taken over, because its lock has ended."""
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(naming, "_rename_new", refuse(errno.ENOSYS))
    write_and_be_killed(tmp_path, call)
    store = open_objects(tmp_path)
    assert store.sizes() in ({}, {"a/b": 1000})
    assert store.create("a/b", b"x" * 1000) in (True, False)
    with pytest.raises(ArtefactMismatch):
        store.create("a/b", b"other")


def test_without_locks_the_claim_of_a_killed_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(naming, "_rename_new", refuse(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(naming, "CLAIM_SECONDS", 0.1)
    write_and_be_killed(tmp_path, "rename")
    with pytest.raises(PipelineError, match=r"was killed.*remove it") as error:
        open_objects(tmp_path).create("a/b", b"x" * 1000)
    one_line(error)
    claim = tmp_path / "a" / ".b.claim.partial"
    assert str(claim) in str(error.value)
    claim.unlink()
    assert open_objects(tmp_path).create("a/b", b"x" * 1000) is True


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_folders_is_fine(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse_for(stat.S_ISDIR, number))
    store = open_objects(tmp_path / "new" / "root")
    assert store.create("a/b", b"1") is True
    store.delete("a/b")
    assert store.sizes() == {}


def refuse_for(kind, number, real=os.fsync):
    """`os.fsync` that fails for one kind of file."""

    def fsync(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, "raw")
        real(descriptor)

    return fsync


def test_a_file_that_cannot_be_synced_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse_for(stat.S_ISREG, errno.EINVAL))
    with pytest.raises(OSError, match="raw"):
        open_objects(tmp_path).create("a", b"1")
    monkeypatch.setattr(os, "fsync", refuse_for(stat.S_ISDIR, errno.EIO))
    with pytest.raises(PipelineError, match="could not be written"):
        open_objects(tmp_path).create("a", b"1")


def test_a_link_is_an_error_that_names_the_settings_for_caches_of_other_disks(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "0a7e").symlink_to(tmp_path / "shared")
    with pytest.raises(ArtefactMismatch, match=r"`select\.cache`.*`caches` or `share`"):
        open_objects(tmp_path / "caches").child("0a7e").sizes()


def test_addresses_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for location in [tmp_path / "a", str(tmp_path / "a"), "a", f"file://{tmp_path}/a"]:
        store = open_objects(location)
        assert isinstance(store, LocalObjects)
        store.create("b", b"1")
    assert open_objects(f"file://{tmp_path}/a%20b").url == str(tmp_path / "a b")
    assert (tmp_path / "a" / "b").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@looped("scheme", ["s3", "gs", "az", "http", "https", "file", "ftp"])
@looped(
    "rest",
    [
        "user:hunter2@host/a",
        "hunter2@host/a",
        "user:hun/hunter2@host/a",
        "host/a?sig=hunter2",
        "host/a#hunter2",
        "host/a\nhunter2",
        "user:hunter2/a",
    ],
)
def test_addresses_with_a_credential_are_rejected_without_repeating_it(scheme, rest):
    with pytest.raises(ConfigError) as error:
        open_objects(f"{scheme}://{rest}")
    assert "hunter2" not in one_line(error)
    assert "hunter2" not in "".join(traceback.format_exception(error.value)).partition("Error:")[2]


@looped(
    "location", ["ftp://host/a", "s3:/bucket", "s3://", "http:///a", "file://host/a", "s3:bucket"]
)
def test_other_addresses_that_cannot_be_used_are_rejected(location):
    with pytest.raises(ConfigError) as error:
        open_objects(location)
    one_line(error)


def test_addresses_outside_of_their_prefix_are_rejected():
    with pytest.raises(ArtefactMismatch, match="plain relative name"):
        open_objects("s3://bucket/a/../b")


def test_local_work_does_not_load_the_client_library(tmp_path):
    code = (
        "import sys; from pipeline.artefacts.objects.addresses import open_objects\n"
        "from pipeline.artefacts.objects.remote import require_conditional_create\n"
        f"store = open_objects({str(tmp_path)!r}); require_conditional_create(store)\n"
        "store.create('a', b'1'); print('obstore' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_http_reads_whole_objects(http_store):
    assert http_store.read("run/a", max_bytes=100) == b"run/a" * 3
    assert http_store.size("run/a") == 15
    assert http_store.child("run").read("a", max_bytes=100) == b"run/a" * 3
    for key in ODD_KEYS:
        assert http_store.read(key, max_bytes=100) == key.encode() * 3
    assert http_store.size("nothing") is None
    with pytest.raises(ArtefactNotFound) as error:
        http_store.read("nothing", max_bytes=1)
    assert f"{http_store.url}/nothing" in one_line(error)
    with pytest.raises(ArtefactMismatch, match="too large: 15 bytes"):
        http_store.read("run/a", max_bytes=14)
    for key in BAD_KEYS:
        with pytest.raises(ArtefactMismatch):
            http_store.read(key, max_bytes=1)


def test_http_is_read_only_and_cannot_list(http_store):
    assert not http_store.can_list
    uses = [
        lambda: http_store.create("a", b""),
        lambda: http_store.delete("a"),
        http_store.sizes,
        http_store.folders,
        lambda: require_conditional_create(http_store),
    ]
    for use in uses:
        with pytest.raises(PipelineError, match="plain HTTP") as error:
            use()
        one_line(error)


@contextmanager
def answering(*head, body=b"", hang=False):
    """A server that sends one fixed answer to every request; yields its address."""
    dated = [*head, "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"]
    text = "\r\n".join(["HTTP/1.1 200 OK", *dated, "", ""]).encode()

    def answer(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the test is over
                return
            with connection:
                connection.settimeout(20)
                connection.recv(65536)
                connection.sendall(text + body)
                if hang:
                    connection.recv(1)  # until the client hangs up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_an_oversized_object_is_rejected_before_its_body():
    """The server announces a terabyte and sends none of it."""
    with answering("Content-Length: 1099511627776", hang=True) as url:
        begin = time.monotonic()
        with pytest.raises(ArtefactMismatch, match="too large"):
            open_objects(url).read("a", max_bytes=MB)
        assert time.monotonic() - begin < 5


def test_a_body_that_is_cut_is_never_returned():
    with answering("Content-Length: 100", body=b"x" * 50) as url:
        with pytest.raises(PipelineError, match="broke off") as error:
            open_objects(url).read("a", max_bytes=100)
        assert f"{url}/a" in one_line(error)


def test_a_body_of_unknown_length_is_rejected():
    with answering("Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n") as url:
        with pytest.raises(PipelineError, match="Content-Length") as error:
            open_objects(url).read("a", max_bytes=100)
        assert f"{url}/a" in one_line(error)


def assert_no_secrets(error, caplog):
    """No key or secret in anything that a user or a log file may see of ``error``."""
    value = error.value
    assert value.__cause__ is None
    assert value.__context__ is None
    seen = [str(value), repr(value), caplog.text, "".join(traceback.format_exception(value))]
    for word in [word for pair in SECRETS.values() for word in pair] + ["wrong-s3cr3t"]:
        assert not [text for text in seen if word in text]


def test_a_reader_reads_and_may_not_write(seaweed, as_user, s3_url, caplog):
    caplog.set_level(logging.DEBUG)
    as_user(seaweed)
    open_objects(s3_url).create("a/b", b"1")
    as_user(seaweed, "ro")
    store = open_objects(s3_url)
    assert store.read("a/b", max_bytes=1) == b"1"
    assert store.sizes() == {"a/b": 1}
    assert store.folders() == ["a"]
    writes = [lambda: store.create("c", b"1"), lambda: require_conditional_create(store)]
    for use in writes:
        with pytest.raises(PipelineError, match="permission denied") as error:
            use()
        assert s3_url in one_line(error)
        assert_no_secrets(error, caplog)
    with pytest.raises(PipelineError):
        store.delete("a/b")
    assert store.sizes() == {"a/b": 1}


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_rejected_and_never_shown(seaweed, as_user, s3_url, caplog, name):
    caplog.set_level(logging.DEBUG)
    as_user(seaweed, **{name: "wrong-s3cr3t"})
    store = open_objects(s3_url)
    uses = [
        lambda: store.read("a", max_bytes=1),
        lambda: store.size("a"),
        lambda: store.create("a", b"1"),
        lambda: store.delete("a"),
        store.sizes,
        store.folders,
    ]
    for use in uses:
        with pytest.raises(PipelineError, match="permission denied") as error:
            use()
        assert not isinstance(error.value, ArtefactNotFound)
        assert s3_url in one_line(error)
        assert_no_secrets(error, caplog)
    assert "s3cr3t" not in repr(store) + store.url


def test_plain_http_to_s3_must_be_asked_for(seaweed, as_user, monkeypatch, s3_url):
    as_user(seaweed)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ConfigError, match="AWS_ALLOW_HTTP=true") as error:
        open_objects(s3_url)
    one_line(error)


def test_a_server_that_ignores_the_condition_is_rejected(nanio_server, as_user, s3_url):
    as_user(nanio_server)
    with pytest.raises(PipelineError, match="ignores conditional creation") as error:
        require_conditional_create(open_objects(s3_url))
    assert s3_url in one_line(error)


def test_a_single_writer_may_use_it_all_the_same(nanio_server, as_user, s3_url):
    as_user(nanio_server)
    store = open_objects(s3_url, single_writer=True)
    require_conditional_create(store)
    assert store.child("x").create("a", b"1") is True
    assert store.child("x").create("a", b"1") is False
    with pytest.raises(ArtefactMismatch, match="non-determinism"):
        store.child("x").create("a", b"2")
    assert store.read("x/a", max_bytes=1) == b"1"


def uses_of(store):
    return [
        lambda: store.create("a", b"1"),
        lambda: store.read("a", max_bytes=1),
        lambda: store.size("a"),
        store.sizes,
    ]


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_dead_server_is_reported_soon(as_user, seaweed, scheme, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # free again below, so that nothing answers there
    as_user(seaweed, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    store = open_objects("s3://bucket/a" if scheme == "s3" else f"http://127.0.0.1:{port}/a")
    for use in uses_of(store)[:2] if scheme == "s3" else uses_of(store)[1:2]:
        begin = time.monotonic()
        with pytest.raises(PipelineError, match="could not be reached") as error:
            use()
        assert time.monotonic() - begin < 10
        assert store.url in one_line(error)
        assert_no_secrets(error, caplog)


def test_a_silent_server_is_reported_in_time(as_user, seaweed, monkeypatch, caplog):
    # a last attempt may begin just before the retries end
    worst = clients.RETRY_SECONDS + clients.SILENCE_SECONDS
    assert worst + clients.CONNECT_SECONDS <= 30
    monkeypatch.setattr(clients, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(clients, "RETRY_SECONDS", 0.6)
    with silent_server() as url:
        as_user(seaweed, AWS_ENDPOINT_URL=url)
        store = open_objects("s3://bucket/a")
        for use in uses_of(store):
            begin = time.monotonic()
            with pytest.raises(PipelineError, match="could not be reached") as error:
                use()
            assert time.monotonic() - begin < 3
            one_line(error)
            assert_no_secrets(error, caplog)


def test_a_large_put_may_be_slower_than_the_limit_on_silence(monkeypatch, as_user, seaweed, s3_url):
    """Nothing arrives while a body is sent, so that limit must not cut a large one."""
    monkeypatch.setattr(clients, "SILENCE_SECONDS", 0.001)
    monkeypatch.setattr(clients, "RETRY_SECONDS", 0.0)
    as_user(seaweed)
    data = os.urandom(2 * remote.LARGE_BYTES)
    assert open_objects(s3_url).put_new("a", data)
    monkeypatch.undo()
    as_user(seaweed)
    assert open_objects(s3_url).read("a", max_bytes=len(data)) == data


def test_a_lost_answer_to_a_put_is_not_a_failure(as_user, seaweed, s3_url, monkeypatch):
    """The first put arrived but its answer did not: the second finds its own bytes."""
    as_user(seaweed)
    store = open_objects(s3_url)
    real = type(store).put_new

    def lost(self, key, data):
        real(self, key, data)
        return real(self, key, data)

    monkeypatch.setattr(type(store), "put_new", lost)
    assert store.create("a", b"1") is False
    assert store.read("a", max_bytes=1) == b"1"


def test_a_forked_child_is_rejected_before_it_hangs(as_user, seaweed, s3_url, monkeypatch):
    as_user(seaweed)
    store = open_objects(s3_url)
    store.size("a")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for use in (lambda: store.size("a"), lambda: open_objects(s3_url)):
        with pytest.raises(PipelineError, match="forked process") as error:
            use()
        one_line(error)


def test_acknowledged_objects_survive_a_kill_of_the_server(tmp_path, as_user):
    with seaweedfs(tmp_path) as server:
        as_user(server)
        store = open_objects(f"s3://{BUCKET}/kept")
        wanted = {f"{number}": os.urandom(20_000) for number in range(20)}
        for key, data in wanted.items():
            store.create(key, data)
        server.restart(store, "0")
        assert store.sizes() == dict.fromkeys(sorted(wanted), 20000)
        assert {key: store.read(key, max_bytes=20_000) for key in wanted} == wanted
        assert all(store.create(key, data) is False for key, data in wanted.items())
