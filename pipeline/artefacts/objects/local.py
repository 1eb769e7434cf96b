"""Write-once objects in a folder of a local or shared (NFS) file system.

An object is written to ``.{name}.{random hex}.partial``, synced to the disk and then linked to its
name. A link, unlike a rename, fails if the name exists, so exactly one writer succeeds; `naming`
has other ways for file systems without hard links. Every folder of a path is opened without
following links, so a store from elsewhere cannot point out of its root.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.artefacts.objects.naming import name_once
from pipeline.artefacts.objects.protocol import (
    check_key,
    check_new_key,
    create_or_compare,
    is_listed,
    missing,
    too_large,
)
from pipeline.artefacts.publishing import PARTIAL, Data, one_line_disk_errors, sync_folder
from pipeline.errors import ArtefactMismatch, PipelineError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _FOLDER | os.O_NOFOLLOW
# O_NONBLOCK: opening a named pipe must not wait for its other end
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalObjects:
    """Objects below a folder. The root may be a symbolic link; nothing below it may."""

    can_list = True

    def __init__(self, root: Path, prefix: tuple[str, ...] = ()) -> None:
        self.root = root
        self.prefix = prefix
        self._durable: set[tuple[str, ...]] = set()

    @property
    def url(self) -> str:
        """The path of the folder."""
        return str(self.root.joinpath(*self.prefix))

    def __repr__(self) -> str:
        return f"LocalObjects({self.url!r})"

    def child(self, name: str) -> "LocalObjects":
        """The store of a folder below this one."""
        return LocalObjects(self.root, (*self.prefix, *check_key(name)))

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """All bytes of an object; see `ObjectStore`."""
        with self._file(key) as descriptor:
            if descriptor is None:
                raise missing(self._where(key))
            size = os.fstat(descriptor).st_size
            if size > max_bytes:
                raise too_large(self._where(key), size, max_bytes)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(size)
        if len(data) != size:
            raise ArtefactMismatch(
                f"{self._where(key)} changed while it was read: {len(data)} bytes (expected "
                f"{size}). Another program writes to this folder; stop it and run the same command "
                "again."
            )
        return data

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""
        with self._file(key) as descriptor:
            return None if descriptor is None else os.fstat(descriptor).st_size

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of every finished object below ``prefix``; links are not followed."""
        below = check_key(prefix) if prefix else []
        with self._one_line_errors(prefix), self._folder(below) as top:
            found = {} if top is None else dict(_regular_files(top))
        keys = {"/".join([*below, key]): size for key, size in found.items()}
        return {key: keys[key] for key in sorted(keys) if is_listed(key)}

    def folders(self) -> list[str]:
        """Names of the folders directly below; a link to a folder does not count."""
        with self._one_line_errors(""), self._folder([]) as top:
            if top is None:
                return []
            with os.scandir(top) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in names if is_listed(name))

    def create(self, key: str, data: Data) -> bool:
        """Store ``data`` durably, or check that the same bytes exist; see `ObjectStore`."""
        *parents, name = [*self.prefix, *check_new_key(key)]

        def link() -> bool:
            with one_line_disk_errors(Path(self._where(key))):
                folder = self._made_folder(parents)
                try:
                    created = _create_file(folder, name, data)
                    # Also if another writer was first: it may not have synced the folder yet.
                    sync_folder(folder)
                finally:
                    os.close(folder)
                return created

        return create_or_compare(self, key, data, link)

    def delete(self, key: str) -> None:
        """Remove an object or a link, durably; no error if it is missing."""
        *parents, name = check_key(key)
        with one_line_disk_errors(Path(self._where(key))), self._folder(parents) as folder:
            if folder is not None:
                with suppress(FileNotFoundError), self._plain_files_only(key):
                    os.unlink(name, dir_fd=folder)
                    sync_folder(folder)

    def _where(self, key: str) -> str:
        return str(Path(self.url, key))

    @contextmanager
    def _file(self, key: str) -> Iterator[int | None]:
        """A descriptor of the regular file under ``key``, None if there is none."""
        *parents, name = check_key(key)
        with self._one_line_errors(key), self._folder(parents) as folder:
            descriptor = None
            if folder is not None:
                with suppress(FileNotFoundError):
                    descriptor = os.open(name, _READ, dir_fd=folder)
            try:
                if descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise self._not_plain(key)
                yield descriptor
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    @contextmanager
    def _folder(self, below: list[str]) -> Iterator[int | None]:
        """A descriptor of a folder below this store, None if there is none."""
        try:
            descriptor = self._open_folder([*self.prefix, *below])
        except FileNotFoundError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_folder(self, parts: list[str], *, make: bool = False) -> int:
        """Walk down from the root without following links; create missing folders if ``make``."""
        descriptor = os.open(self.root, _FOLDER)
        for number, part in enumerate(parts, 1):
            try:
                if make:
                    self._make_part(descriptor, parts[:number])
                below = os.open(part, _BELOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno not in _LINK_OR_FILE:
                    raise
                raise self._not_plain("/".join(parts[len(self.prefix) : number])) from None
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _make_part(self, above: int, parts: list[str]) -> None:
        """Create one folder and sync its name, even if another process created it."""
        if tuple(parts) in self._durable and _is_there(parts[-1], above):
            return
        with suppress(FileExistsError):
            os.mkdir(parts[-1], dir_fd=above)
        sync_folder(above)
        self._durable.add(tuple(parts))

    def _made_folder(self, parts: list[str]) -> int:
        _make_durable(self.root)
        return self._open_folder(parts, make=True)

    def _not_plain(self, key: str) -> ArtefactMismatch:
        return ArtefactMismatch(
            f"{self._where(key)} is a link or a special file (expected plain files in plain "
            "folders). Remove it. To use a cache of another disk, name its folder as "
            "`select.cache`, or the folder of caches as `caches` or `share`."
        )

    @contextmanager
    def _plain_files_only(self, key: str) -> Iterator[None]:
        try:
            yield
        except IsADirectoryError:
            raise self._not_plain(key) from None

    @contextmanager
    def _one_line_errors(self, key: str) -> Iterator[None]:
        """Turn an OSError while reading into a message of one line."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket
                raise self._not_plain(key) from None
            if isinstance(error, PipelineError) or error.errno not in _READ_ERRORS:
                raise
            raise PipelineError(
                f"{self._where(key)} could not be read: {os.strerror(error.errno)}. "
                "Check the permissions and the disk."
            ) from error


_LINK_OR_FILE = {errno.ENOTDIR, errno.ELOOP}  # errors of a walk if there is no folder
_READ_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTDIR,
}


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _regular_files(top: int) -> Iterator[tuple[str, int]]:
    """Relative name and bytes of every regular file below a folder that is open."""

    def reraise(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder may be removed meanwhile
            raise error

    for folder, _, names, descriptor in os.fwalk(".", dir_fd=top, onerror=reraise):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield str(Path(folder, name)), found.st_size


def _create_file(folder: int, name: str, data: Data) -> bool:
    """Write a temporary file, sync it and give it its name; False if the name is taken."""
    partial = f".{name}.{secrets.token_hex(8)}{PARTIAL}"
    try:
        _write_durably(folder, partial, data)
        return name_once(folder, partial, name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)


def _write_durably(folder: int, name: str, data: Data) -> None:
    """Write a new file and sync it to the disk."""
    descriptor = os.open(name, _NEW, 0o666, dir_fd=folder)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable(folder: Path) -> None:
    """Create a folder and its parents, and sync the names of the new ones to the disk."""
    if folder.is_dir():
        return
    _make_durable(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    above = os.open(folder.parent, _FOLDER)
    try:
        sync_folder(above)
    finally:
        os.close(above)
