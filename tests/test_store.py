import errno
import json

import pytest

from pipeline.artefacts.store import (
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


def test_what_is_written_lies_under_the_final_name_alone(tmp_path):
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


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_what_a_killed_attempt_left_is_swept(tmp_path, write):
    if write is write_folder:
        (tmp_path / "thing.partial").mkdir()
        (tmp_path / "thing.partial" / "stale").write_text("half")
    else:
        (tmp_path / "thing.partial").write_text("half and longer than the new content")
    write(tmp_path / "thing", "1")
    assert not [name for name in names(tmp_path) if "partial" in name or "stale" in name]


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "No space left on device. Free some space or set another `workspace`"),
        (errno.EDQUOT, "Free some space or set another `workspace`"),
        (errno.EFBIG, "File too large. Raise the limit on file sizes"),
        (errno.EROFS, "Set a `workspace` on a disk that can be written"),
    ],
)
def test_a_disk_that_cannot_be_written_is_told_in_one_line(tmp_path, write, number, told):
    with pytest.raises(PipelineError, match=told) as refusal:
        write(tmp_path / "thing", "1", OSError(number, "x"))
    assert "\n" not in str(refusal.value)
    assert "thing could not be written" in str(refusal.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_a_workspace_that_is_a_file_is_told_in_one_line(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="Set a `workspace` that is a folder"):
        write(tmp_path / "file" / "thing", "1")


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_errors_that_are_not_of_the_disk_pass_unchanged(tmp_path, write):
    failure = ArtefactNotFound("x is missing. Make it.")
    with pytest.raises(ArtefactNotFound) as refusal:
        write(tmp_path / "thing", "1", failure)
    assert refusal.value is failure
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
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"[1]", b"3"])
def test_json_that_is_torn_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactMismatch, match="Remove it and run `make x` again") as refusal:
        read_json(path, made_by="make x")
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_missing_json_names_what_makes_it(tmp_path):
    with pytest.raises(ArtefactNotFound, match=r"x\.json does not exist\. Make it with `make x`"):
        read_json(tmp_path / "x.json", made_by="make x")
