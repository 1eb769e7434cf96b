"""Durable publishing, so that a file or folder under its final name is complete; folder locks.

Everything is written under a temporary name, synced to the disk and renamed last. So a kill or a
full disk at any moment leaves nothing incomplete under a final name. A JSON file also has a digest
of its contents, which is checked when it is read.
"""

import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError
from pipeline.provenance import Json, identity, short

Data: TypeAlias = bytes | memoryview
"""Bytes of a new file or object; a memory view saves a copy."""
PARTIAL = ".partial"
"""Suffix of unfinished files and folders. A reader never opens such a name."""
DIGEST: Final = "digest"
"""Key of the digest of a JSON file's other contents. Earlier versions wrote none, and whoever edits
a file on purpose removes it."""

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_COUNTER = itertools.count()
_QUOTE = "'"


@contextmanager
def publishing_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``final``; it becomes ``final`` only on success.

    Remains of earlier, killed attempts are removed first. A failure removes the folder, so a full
    disk does not stay full. If another process published ``final`` meanwhile, its folder stays and
    this one is removed.
    """
    partial = _aside(final)
    with one_line_disk_errors(final):
        _sweep(final)
        try:  # from here on: an interrupt may come as soon as the folder is there
            partial.mkdir(parents=True)
            yield partial
            _sync_tree(partial)
            _rename_unless_published(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(final.parent)


@contextmanager
def publishing_file(final: Path) -> Iterator[Path]:
    """Yield a path next to ``final``; a file written there replaces ``final`` only on success."""
    partial = _aside(final)
    with one_line_disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        try:
            yield partial
            _sync_file(partial)
            partial.replace(final)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(final.parent)


def publish_json(final: Path, value: Mapping[str, Json]) -> None:
    """Write ``value`` and its digest as indented JSON, all or nothing."""
    contents: dict[str, Json] = json.loads(json.dumps(value, allow_nan=False))
    assert DIGEST not in contents, "the digest is added here"
    described = {**contents, DIGEST: identity("record", contents)}
    with publishing_file(final) as partial:
        text = json.dumps(described, indent=1, sort_keys=True, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, made_by: str, remedy: str = "") -> dict[str, Json]:
    """Read a JSON object, checked against its digest and without it.

    Args:
        path: the file.
        made_by: command that makes it, for messages.
        remedy: the next step if it is damaged; by default to remove it and to make it again.
    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged.
    """
    remedy = remedy or f"Remove it and run `{made_by}` again."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtefactNotFound(f"{path} does not exist. Make it with `{made_by}`.") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactMismatch(f"{path} is not a JSON file: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise ArtefactMismatch(
            f"{path} holds a JSON {type(value).__name__} (expected an object). {remedy}"
        )
    return _without_digest(path, value, remedy)


def _without_digest(path: Path, value: dict[str, Json], remedy: str) -> dict[str, Json]:
    """Check ``value`` against its digest, if it has one, and remove the digest."""
    contents = {key: one for key, one in value.items() if key != DIGEST}
    if len(contents) == len(value):
        return value
    stored = value[DIGEST]
    try:
        found = identity("record", contents)
    except ValueError:  # a number became infinite
        found = "none"
    if found != stored:
        raise ArtefactMismatch(
            f"{path} was changed after it was written: its contents have digest {short(found)} "
            f"(expected {short(ascii(stored).strip(_QUOTE))}). {remedy} "
            f"If you edited it on purpose, remove its `{DIGEST}` line, and name new runs."
        )
    return contents


@contextmanager
def locked_folder(
    folder: Path, *, file: str | None = None, busy: str | None = None
) -> Iterator[None]:
    """Create a folder and hold its lock, if its file system has locks.

    A lock only keeps two processes from doing the same work; published artefacts are complete with
    and without it. It ends with its process.

    Args:
        folder: the folder to create and lock.
        file: name of the file in it that is locked; None: the folder itself.
        busy: the error where another process holds the lock; None: wait for it.

    Raises:
        PipelineError: if the folder cannot be written, or another process holds the lock.
    """
    with one_line_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(folder, file)
    try:
        _lock(descriptor, busy)
        yield
    finally:
        os.close(descriptor)


def _open_lock(folder: Path, file: str | None) -> int:
    if file is None:
        return os.open(folder, os.O_RDONLY)
    return os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def _lock(descriptor: int, busy: str | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise PipelineError(busy) from error
    except OSError:
        return  # a file system without locks


def _aside(final: Path) -> Path:
    """A name next to ``final`` that no other process uses; it contains this process's id."""
    owner = f"{_HOST}-{os.getpid()}-{next(_COUNTER)}"
    return final.with_name(f"{final.name}.{owner}{PARTIAL}")


def _sweep(final: Path) -> None:
    """Remove unfinished files next to ``final`` that ended processes of this machine left."""
    for path in final.parent.glob(f"{glob.escape(final.name)}.{_HOST}-*{PARTIAL}"):
        pid = path.name.removesuffix(PARTIAL).split("-")[-2]
        if Path("/proc/self").exists() and Path(f"/proc/{pid}").exists():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _rename_unless_published(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not final.is_dir():
            raise
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(descriptor: int) -> None:
    """Make the names in an open folder durable, if its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of file systems that sync files only, such as CIFS, and shared folders of VirtualBox."""


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_folder(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        (_sync_folder if path.is_dir() else _sync_file)(path)
    _sync_folder(folder)


@contextmanager
def one_line_disk_errors(final: Path) -> Iterator[None]:
    """Turn the OSError of a full or unwritable disk into a message of one line for the user."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PipelineError) or error.errno not in _DISK_ERRORS:
            raise
        raise PipelineError(
            f"{final} could not be written: {os.strerror(error.errno)}. "
            f"{_DISK_ERRORS[error.errno]} Nothing was left under that name."
        ) from error


_DISK_ERRORS = {
    errno.ENOSPC: "Free some space or set another `workspace`.",
    errno.EDQUOT: "Free some space or set another `workspace`.",
    errno.EACCES: "Check the permissions or set another `workspace`.",
    errno.EPERM: "Check the permissions or set another `workspace`.",
    errno.EROFS: "Set a `workspace` on a disk that can be written.",
    errno.EIO: "Check the disk.",
    errno.EFBIG: "Raise the limit on file sizes or set another `workspace`.",
    errno.EEXIST: "Set a `workspace` that is a folder.",
    errno.ENOTDIR: "Set a `workspace` that is a folder.",
}
