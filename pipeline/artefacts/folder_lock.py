"""A folder that one process at a time works in."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.artefacts.publishing import one_line_disk_errors

_NO_LOCKS: Final = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a network file system answers where a folder cannot be held."""


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Make and hold a folder, as far as its file system has locks; wait for who holds it.

    It saves work and nothing depends on it: what is published is whole with and without. The lock
    ends with its process.
    """
    with one_line_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(held)
