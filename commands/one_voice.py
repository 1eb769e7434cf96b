"""Which of several processes tells an error: what all of them meet is told once.

The processes agree by the store through which torchrun brought them together, so that it works
before they are connected and after one has ended.
"""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

_FIRST_ASKS_NOBODY: Final = 1.0
"""Seconds that others leave the first rank to tell the same error."""
_STORE_WAIT: Final = timedelta(seconds=5)


def is_one_of_many() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def prefix() -> str:
    """What a process puts before its lines, if it is one of many and not the first."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if is_one_of_many() and rank != "0" else ""


def tells(*, patience: float = 0.0) -> bool:
    """Whether this process is the one to tell what went wrong; at most one is told yes.

    Args:
        patience: seconds to leave the others, where their error is the cause of this one.
    """
    if not is_one_of_many():
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=_STORE_WAIT,
        )
        told = f"heartcut/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        patience += _FIRST_ASKS_NOBODY if prefix() else 0.0
        until = time.monotonic() + patience
        while time.monotonic() < until and not store.check([told]):
            time.sleep(0.02)
        return bool(store.add(told, 1) == 1)
    except (RuntimeError, KeyError):  # the store was the first rank's and has gone, or is unknown
        return True


def leave_for_torchrun(text: str) -> None:
    """Leave an error where torchrun looks for it, to be shown in its summary."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and is_one_of_many():
        extra = {"timestamp": str(int(time.time())), "py_callstack": text}
        told = {"message": {"message": text, "extraInfo": extra}}
        Path(path).write_text(json.dumps(told))
