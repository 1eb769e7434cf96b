import errno
import fcntl
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import time

import pytest

from pipeline.artefacts.publishing import (
    _HOST,
    locked_folder,
    publish_json,
    publishing_file,
    publishing_folder,
    read_json,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError

INTERRUPTIONS = [KeyboardInterrupt(), SystemExit(1), RuntimeError("bug"), MemoryError()]


def write_folder(final, content, failure=None):
    with publishing_folder(final) as partial:
        (partial / "a").mkdir()
        (partial / "a" / "b").write_text(content)
        if failure is not None:
            raise failure


def write_file(final, content, failure=None):
    with publishing_file(final) as partial:
        partial.write_text(content)
        if failure is not None:
            raise failure


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_only_the_final_name_exists_after_writing(tmp_path):
    write_folder(tmp_path / "x" / "folder", "1")
    write_file(tmp_path / "y" / "file", "2")
    assert names(tmp_path) == ["x", "x/folder", "x/folder/a", "x/folder/a/b", "y", "y/file"]
    assert (tmp_path / "x" / "folder" / "a" / "b").read_text() == "1"
    assert (tmp_path / "y" / "file").read_text() == "2"


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize("failure", INTERRUPTIONS, ids=repr)
def test_an_interrupted_write_leaves_nothing(tmp_path, write, failure):
    with pytest.raises(type(failure)):
        write(tmp_path / "thing", "1", failure)
    assert names(tmp_path) == []


def test_an_interrupted_replacement_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", "new", KeyboardInterrupt())
    assert (tmp_path / "file").read_text() == "old"
    write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def write_half_and_be_killed(write, final):
    """End without any cleaning up, as by SIGKILL."""
    if write is write_folder:
        with publishing_folder(final) as partial:
            (partial / "stale").write_text("half")
            os._exit(9)
    with publishing_file(final) as partial:
        partial.write_text("half and longer than the new content")
        os._exit(9)


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_what_a_killed_attempt_left_is_swept(tmp_path, write):
    killed = multiprocessing.get_context("fork").Process(
        target=write_half_and_be_killed, args=(write, tmp_path / "thing")
    )
    killed.start()
    killed.join()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"thing.{_HOST}-{killed.pid}-{left[0].split('-')[-1]}"], "or else none is swept"
    assert left[0].endswith(".partial")
    write(tmp_path / "thing", "1")
    assert not [name for name in names(tmp_path) if "partial" in name or "stale" in name]


@pytest.fixture
def living():
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def unfinished_folder(path):
    path.mkdir(parents=True)
    (path / "half").write_text("1")
    return path


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_what_a_living_process_writes_is_left_alone_until_it_is_dead(tmp_path, write, living):
    partial = unfinished_folder(tmp_path / f"thing.{_HOST}-{living.pid}-0.partial")
    write(tmp_path / "thing", "1")
    assert (partial / "half").read_text() == "1"
    living.kill()
    living.wait()
    write(tmp_path / "thing2", "1")
    assert partial.exists(), "it is beside another name"
    if write is write_file:
        write(tmp_path / "thing", "2")
        assert not partial.exists()


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize(
    "name", ["thing.00000000-{}-0.partial", "other.{host}-{}-0.partial", "thing.partial"]
)
def test_what_is_of_another_machine_or_of_another_name_is_left_alone(tmp_path, write, name):
    assert _HOST != "00000000"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    partial = unfinished_folder(tmp_path / name.format(dead.pid, host=_HOST))
    write(tmp_path / "thing", "1")
    assert (partial / "half").exists()


def test_of_two_that_publish_the_same_folder_the_first_wins(tmp_path):
    final = tmp_path / "thing"
    with publishing_folder(final) as slow:
        (slow / "a").write_text("slow")
        write_folder(final, "fast")
    assert names(tmp_path) == ["thing", "thing/a", "thing/a/b"]
    assert (final / "a" / "b").read_text() == "fast"


def test_a_file_in_the_place_of_the_folder_is_reported_and_kept(tmp_path):
    (tmp_path / "thing").write_text("mine")
    with pytest.raises(PipelineError, match="`workspace`"):
        write_folder(tmp_path / "thing", "1")
    assert (tmp_path / "thing").read_text() == "mine"
    assert names(tmp_path) == ["thing"]


def publish_when_asked(final, name, at):
    with publishing_folder(final) as partial:
        for i in range(20):
            (partial / str(i)).write_text(name)
        time.sleep(max(0.0, at - time.monotonic()))


def test_processes_that_publish_the_same_folder_at_once_leave_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        final, at = tmp_path / f"thing{attempt}", time.monotonic() + 0.1
        processes = [
            context.Process(target=publish_when_asked, args=(final, name, at)) for name in "abc"
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        contents = {(final / str(i)).read_text() for i in range(20)}
        assert len(contents) == 1, "a mixture"
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device. Free some space or set another `workspace`"),
        (errno.EDQUOT, "Free some space or set another `workspace`"),
        (errno.EFBIG, "File too large. Raise the limit on file sizes"),
        (errno.EROFS, "Set a `workspace` on a disk that can be written"),
    ],
)
def test_a_disk_that_cannot_be_written_is_reported_in_one_line(tmp_path, write, number, message):
    with pytest.raises(PipelineError, match=message) as caught:
        write(tmp_path / "thing", "1", OSError(number, "x"))
    assert "\n" not in str(caught.value)
    assert "thing could not be written" in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_fine(tmp_path, monkeypatch, write, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "raw")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "final", "new")
    assert names(tmp_path)[0] == "final"


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_a_workspace_that_is_a_file_is_reported_in_one_line(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="`workspace`"):
        write(tmp_path / "file" / "thing", "1")


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_errors_that_are_not_of_the_disk_pass_unchanged(tmp_path, write):
    failure = ArtefactNotFound("x is missing. Make it.")
    with pytest.raises(ArtefactNotFound) as caught:
        write(tmp_path / "thing", "1", failure)
    assert caught.value is failure
    with pytest.raises(ConnectionResetError):
        write(tmp_path / "thing", "1", ConnectionResetError(errno.ECONNRESET, "x"))


def test_json_reads_back(tmp_path):
    value = {"b": [1, None, "ü"], "a": {"c": 1.5}}
    publish_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", made_by="make x") == value
    assert names(tmp_path) == ["x.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    publish_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json", made_by="make x") == {"a": 1}
    assert names(tmp_path) == ["x.json"]


def test_json_that_was_changed_is_rejected_until_its_digest_is_removed(tmp_path):
    path = tmp_path / "x.json"
    publish_json(path, {"a": 0.25, "z": "ü"})
    written = path.read_text()
    path.write_text(written.replace("0.25", "0.75"))
    with pytest.raises(
        ArtefactMismatch, match=r"contents have digest \w+ \(expected \w+\)"
    ) as caught:
        read_json(path, made_by="make x")
    assert "Remove it and run `make x` again." in str(caught.value)
    assert "If you edited it on purpose, remove its `digest` line, and name new runs." in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    kept = [line for line in path.read_text().splitlines() if '"digest"' not in line]
    assert len(kept) == len(written.splitlines()) - 1
    path.write_text("\n".join(kept))
    assert read_json(path, made_by="make x") == {"a": 0.75, "z": "ü"}


def test_white_space_and_the_order_of_keys_are_not_part_of_the_digest(tmp_path):
    path = tmp_path / "x.json"
    publish_json(path, {"a": [1, 2.5e-17], "b": {"1": None, "10": True}})
    turned = dict(reversed(json.loads(path.read_text()).items()))
    path.write_text(json.dumps(turned))
    assert read_json(path, made_by="make x") == {"a": [1, 2.5e-17], "b": {"1": None, "10": True}}


@pytest.mark.parametrize("digest", ["", "0" * 64, 3, None, ["\x1b[2J"], {"a": 1}, "\x1b[2J"])
def test_another_digest_is_rejected_in_one_printable_line(tmp_path, digest):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1, "digest": digest}))
    with pytest.raises(ArtefactMismatch, match="was changed after it was written") as caught:
        read_json(path, made_by="make x")
    assert str(caught.value).isprintable()


def test_a_number_that_became_infinite_is_rejected(tmp_path):
    path = tmp_path / "x.json"
    publish_json(path, {"a": 1e-300})
    path.write_text(path.read_text().replace("1e-300", "1e+999"))
    with pytest.raises(ArtefactMismatch, match="contents have digest none"):
        read_json(path, made_by="make x")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"[1]", b"3"])
def test_truncated_json_is_rejected_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactMismatch, match="`make x`") as caught:
        read_json(path, made_by="make x")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_json_names_what_makes_it(tmp_path):
    with pytest.raises(ArtefactNotFound, match=r"x\.json .*`make x`"):
        read_json(tmp_path / "x.json", made_by="make x")


@pytest.mark.parametrize("file", [None, "lock"])
def test_a_folder_is_held_by_one_at_a_time(tmp_path, file):
    folder = tmp_path / "new" / "folder"
    with (
        locked_folder(folder, file=file),
        pytest.raises(PipelineError, match=r"^it is busy$"),
        locked_folder(folder, file=file, busy="it is busy"),
    ):
        pass
    with locked_folder(folder, file=file, busy="it is busy"):
        assert [path.name for path in folder.iterdir()] == ([] if file is None else [file])


def test_a_file_system_without_locks_works_too(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_folder(tmp_path, busy="it is busy"), locked_folder(tmp_path, busy="it is busy"):
        pass
