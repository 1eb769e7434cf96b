"""Parquet files with a seal: digests of their own bytes, before the first page.

    PAR1                    the first bytes of every parquet file
    heartcut seal 1         a line of its own, followed by two lines of 64 hex digits:
    <sha256>                of the footer, from its first byte to the end of the file
    <sha256>                of everything between the seal and the footer
    pages, footer, PAR1     as in every parquet file

A page has a checksum, but the footer has none: a flipped bit there can change types, statistics or
the record and leave a readable file. Every reader finds the pages through the footer, so none sees
the seal. A program that edits a table writes a file of its own, without a seal. So a file without a
seal opens as one that was edited on purpose, or that an earlier version wrote.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artefacts.publishing import publishing_file
from pipeline.artefacts.records import printable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import short

_MAGIC: Final = b"PAR1"
_MARK: Final = b"heartcut seal 1\n"
_DIGITS: Final = 64
_SEAL_BYTES: Final = len(_MARK) + 2 * (_DIGITS + 1)
_START: Final = len(_MAGIC) + _SEAL_BYTES
"""Offset of the first page."""
_LENGTH_BYTES: Final = 4
_ROW_GROUP: Final = 65_536
_BLOCK: Final = 1 << 22


def write(path: Path, table: pa.Table) -> None:
    """Write and seal a table, and publish it under ``path`` when it is complete."""
    with publishing_file(path) as partial:
        with pa.OSFile(str(partial), "wb") as sink:
            options = {"compression": "zstd", "write_page_checksum": True}
            with pq.ParquetWriter(sink, table.schema, **options) as writer:
                sink.write(bytes(_SEAL_BYTES))  # after the magic bytes that the writer began with
                writer.write_table(table, row_group_size=_ROW_GROUP)
        _seal(partial)


@contextmanager
def opened(path: Path, *, whole: bool, made_by: str, remedy: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file whose bytes are checked against its seal, if it has one.

    Args:
        path: the file.
        whole: check every byte; False: the footer, to read the schema and the metadata alone.
        made_by: command that makes such files, for messages.
        remedy: the next step if the file is damaged.
    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is not a parquet file, or damaged; also while it is read.
    """
    if path.is_dir():
        raise ArtefactMismatch(f"{path} is a folder (expected a parquet file of `{made_by}`).")
    try:
        _check_seal(path, whole=whole, remedy=remedy)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError as error:
        if isinstance(error, ArtefactNotFound):
            raise
        raise ArtefactNotFound(f"{path} does not exist. Make it with `{made_by}`.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, ArtefactMismatch):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ArtefactMismatch(
            f"{path} is not a readable parquet file: {reason}. {remedy}"
        ) from error


def _seal(path: Path) -> None:
    """Write the digests into the place that was left for them."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        footer = _footer(file, size)
        digests = _sha256(file, footer, size), _sha256(file, _START, footer)
        file.seek(len(_MAGIC))
        file.write(_MARK + "".join(f"{digest}\n" for digest in digests).encode())


def _check_seal(path: Path, *, whole: bool, remedy: str) -> None:
    with path.open("rb") as file:  # not mapped: some file systems cannot map files
        size = os.fstat(file.fileno()).st_size
        if size <= _START:
            return  # too short for a seal
        seal = file.read(_START)[len(_MAGIC) :]
        file.seek(size - len(_MAGIC))
        if not seal.startswith(_MARK) or file.read() != _MAGIC:
            return  # no seal, or no footer, which reading reports
        footer = _footer(file, size)
        text = seal[len(_MARK) :].decode(errors="replace")
        of_footer, of_pages = text[:_DIGITS], text[_DIGITS + 1 : -1]
        _require(path, "footer", _sha256(file, footer, size), of_footer, remedy)
        if whole:
            _require(path, "pages", _sha256(file, _START, footer), of_pages, remedy)


def _require(path: Path, part: str, found: str, expected: str, remedy: str) -> None:
    if found != expected:
        raise ArtefactMismatch(
            f"{path} is damaged: its {part} {'has' if part == 'footer' else 'have'} digest "
            f"{short(found)} (expected {short(printable(expected))}). {remedy}"
        )


def _footer(file: BinaryIO, size: int) -> int:
    """Offset of the footer, as the end of the file gives it."""
    end = size - len(_MAGIC) - _LENGTH_BYTES
    file.seek(end)
    return max(_START, end - int.from_bytes(file.read(_LENGTH_BYTES), "little"))


def _sha256(file: BinaryIO, start: int, stop: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while start < stop and (block := file.read(min(_BLOCK, stop - start))):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()
