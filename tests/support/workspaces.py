"""A small real workspace, and what tests do to files in one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artefacts.publishing import DIGEST, PARTIAL
from pipeline.errors import PipelineError
from stages.config.file import load_config
from stages.config.root import Config

T = TypeVar("T")

TINY = """\
[prepare]
test_fraction = 0.75

[views]
padding = 1
flip = false
count = 2

[train_teacher]
arch = "resnet8a"
epochs = 2
batch_size = 64
lr = 0.1
fraction = 0.3
precision = "fp32"

[cache_teacher]
precision = "fp32"

[train_student]
arch = "resnet8a"
epochs = 1
batch_size = 64
lr = 0.1
precision = "fp32"
"""
"""Digits at full size, networks and schedules as small as they come."""


def tiny_config(file: Path, workspace: Path, *overrides: str) -> Config:
    """The configuration in ``file`` for another workspace."""
    return load_config(file, overrides=[f"workspace={workspace}", *overrides])


def linked_copy(workspace: Path, copy: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A copy of hard links; `damage` and every stage replace files and leave the original alone."""
    ignore = shutil.ignore_patterns(*without)
    return Path(shutil.copytree(workspace, copy, copy_function=os.link, ignore=ignore))


def replace_bytes(path: Path, data: bytes) -> None:
    """Give ``path`` other contents without touching files that are linked to it."""
    path.unlink()
    path.write_bytes(data)


def contents(path: Path) -> dict[str, Any]:
    """The contents of a JSON record without its digest."""
    record: dict[str, Any] = json.loads(path.read_text())
    record.pop(DIGEST, None)
    return record


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """A JSON record to change, written back without its digest, as a user edits it on purpose."""
    record = contents(path)
    yield record
    replace_bytes(path, json.dumps(record).encode())


def flip_byte(path: Path, offset: int) -> None:
    """Invert one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    replace_bytes(path, bytes(data))


@contextmanager
def flipped(path: Path, offset: int, *, mask: int = 0xFF) -> Iterator[None]:
    """One byte inverted for a while, in place: not for linked files."""
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ mask]))
        file.flush()
        try:
            yield
        finally:
            file.seek(offset)
            file.write(bytes([value]))


def read_or_refusal(read: Callable[[], T]) -> T | str:
    """Return what ``read`` returns, or the one line of its error."""
    try:
        return read()
    except PipelineError as error:
        line = str(error)
    assert "\n" not in line
    return line


def tables_in(folder: Path) -> list[Path]:
    """The selection tables of a folder, without the score files beside them."""
    return sorted(set(folder.glob("*.parquet")) - set(folder.glob("*.scores.parquet")))


def unfinished(folder: Path) -> list[Path]:
    """List the partial files of stopped commands."""
    return sorted(folder.rglob(f"*{PARTIAL}"))


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time and size of every file, to see that nothing was written."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}
