"""Giving a finished file its name, unless the name is taken, on file systems of every kind.

A hard link does so everywhere that has them. exFAT, FAT and SMB have none, but they rename without
overwriting. Drive in Colab, sshfs and gcsfuse may have neither: there a claim, a file next to the
name, keeps other writers of this machine away while the name is looked up and given.
"""

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.artefacts.publishing import PARTIAL
from pipeline.errors import PipelineError

CLAIM_SECONDS = 10.0
"""Time to wait for a claim whose owner may have been killed; only without locks."""
_POLL_SECONDS = 0.05
_NOREPLACE = 1
_NOT_SUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_LINKS = {*_NOT_SUPPORTED, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV}
_NO_RENAME = {*_NOT_SUPPORTED, errno.EINVAL}
_CLAIM = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def name_once(folder: int, partial: str, name: str) -> bool:
    """Give the file ``partial`` of an open folder its name; False if the name is taken.

    The caller removes ``partial``, which may have been renamed.

    Raises:
        PipelineError: if another process holds the claim of the name and does not finish.
    """
    for give, unsupported in ((_link, _NO_LINKS), (_rename_new, _NO_RENAME)):
        try:
            give(folder, partial, name)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in unsupported:
                raise
        else:
            return True
    return _rename_under_claim(folder, partial, name)


def _link(folder: int, partial: str, name: str) -> None:
    os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder)


def _rename_new(folder: int, partial: str, name: str) -> None:
    """Rename a file, if the new name is free, by Linux's renameat2."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:  # an older C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if renameat2(folder, os.fsencode(partial), folder, os.fsencode(name), _NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _rename_under_claim(folder: int, partial: str, name: str) -> bool:
    claim = f".{name}.claim{PARTIAL}"
    has_locks = _has_locks(folder, partial)
    with _locked(folder, claim) if has_locks else _alone(folder, claim):
        if _exists(folder, name):
            return False
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        return True


def _has_locks(folder: int, partial: str) -> bool:
    descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _locked(folder: int, claim: str) -> Iterator[None]:
    """Hold the lock of a claim. The lock of a killed process has ended, its claim is taken over."""
    descriptor = _lock(folder, claim)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(claim, dir_fd=folder)
        os.close(descriptor)


def _lock(folder: int, claim: str) -> int:
    while True:
        descriptor = os.open(claim, _CLAIM, 0o666, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_current = _is_current(folder, claim, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if is_current:  # else its owner has removed it meanwhile
            return descriptor
        os.close(descriptor)


def _is_current(folder: int, claim: str, descriptor: int) -> bool:
    try:
        named = os.stat(claim, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


@contextmanager
def _alone(folder: int, claim: str) -> Iterator[None]:
    """Create the claim, where there are no locks; wait while another process has it."""
    until = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            os.close(os.open(claim, _CLAIM | os.O_EXCL, 0o666, dir_fd=folder))
            break
        except FileExistsError as error:
            if time.monotonic() > until:
                place = Path(f"/proc/self/fd/{folder}").readlink()
                raise PipelineError(
                    f"{place}/{claim} was left by a process that was killed, or is another "
                    "process's (expected none, or one that finishes). If no other process writes "
                    "there, remove it and run the same command again."
                ) from error
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.unlink(claim, dir_fd=folder)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
