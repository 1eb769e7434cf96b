"""Files that several processes need and one of them writes."""

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime.ranks import Ranks


def is_missing(path: Path, ranks: Ranks) -> bool:
    """Return True if any rank lacks the file; then all ranks take part in making it."""
    return ranks.any(not path.exists())


def write_once(path: Path, write: Callable[[], None], *, ranks: Ranks) -> None:
    """Write a file once per folder: by rank 0, then by the first rank of a machine that lacks it.

    Every rank has the content. Machines that share a folder have one copy, others one each.
    ``write`` publishes the file complete.
    """
    for writes in (ranks.is_first, _is_first_here(ranks)):
        if writes and not path.exists():
            write()
        ranks.wait()


def _is_first_here(ranks: Ranks) -> bool:
    """Return True for the first rank of this machine, as torchrun numbers them."""
    return int(os.environ.get("LOCAL_RANK", ranks.rank)) == 0
