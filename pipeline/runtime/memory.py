"""Memory of the process: blocks that one batch frees are there for the next."""

import ctypes
from contextlib import suppress
from typing import Final

REUSED_BYTES: Final = 64 << 20
"""Size from which a block is still given back to the system as soon as it is free."""
_KEPT_BYTES: Final = 1 << 30
"""Free memory at the end of the heap that the process keeps."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of the settings in malloc.h."""


def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks of up to `REUSED_BYTES`; elsewhere nothing changes.

    By default it gives much of a batch's memory back to the system, which has to clear every page
    of it before the next batch. That takes a fifth of a forward pass on a CPU.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # Versions before 2.35 accept at most 32 MiB.
        if mallopt(_MMAP_THRESHOLD, REUSED_BYTES) or mallopt(_MMAP_THRESHOLD, 32 << 20):
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)  # alone it would end glibc's own adjustment
