"""Choice of the process that reports an error: what all of them meet is reported once.

The processes agree by the store through which torchrun brought them together, so that it works
before they are connected and after one has ended.
"""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

_HEAD_START: Final = 1.0
"""Seconds that the other processes leave the first one to report the same error."""
_STORE_WAIT: Final = timedelta(seconds=5)


def is_one_of_many() -> bool:
    """Report if torchrun started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def prefix() -> str:
    """Start of each line of a process that is one of many and not the first."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if is_one_of_many() and rank != "0" else ""


def is_reporter(*, patience: float = 0.0) -> bool:
    """Decide if this process reports what went wrong; True in one process at most.

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
        key = f"heartcut/reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        patience += _HEAD_START if prefix() else 0.0
        until = time.monotonic() + patience
        while time.monotonic() < until and not store.check([key]):
            time.sleep(0.02)
        return bool(store.add(key, 1) == 1)
    except (RuntimeError, KeyError):  # the store was the first rank's and has gone, or is unknown
        return True


def leave_for_torchrun(text: str) -> None:
    """Write an error where torchrun looks for it, to be shown in its summary."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and is_one_of_many():
        extra = {"timestamp": str(int(time.time())), "py_callstack": text}
        error = {"message": {"message": text, "extraInfo": extra}}
        Path(path).write_text(json.dumps(error), encoding="utf-8")
