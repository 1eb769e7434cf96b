"""Standard streams of the process: closed ones, characters that they lack, and lost output."""

import codecs
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_ERRORS = "heartcut"


def prepare_streams() -> None:
    """Replace closed streams by the null device, and let no character be an error.

    A file opened later would otherwise get the number of a closed stream, and what a library prints
    would be written into it.
    """
    codecs.register_error(_ERRORS, _bytes_or_escapes)
    for number, name in enumerate(_NAMES):
        if not _is_open(number):
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, TextIOWrapper) and isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors=_ERRORS)
        sys.stdout.flush()
        sys.stdout = TextIOWrapper(
            BufferedWriter(_Output(1, "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors=_ERRORS,
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


class LostOutputError(OSError):
    """Standard output cannot be written: its disk is full, or its reader has ended."""


class _Output(FileIO):
    """Standard output, whose errors differ from those of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)  # nothing later can be written either
            os.dup2(null, self.fileno())
            os.close(null)
            raise LostOutputError(*error.args) from None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a file's name that has no characters; escape what the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    first = part[0]
    if "\udc80" <= first <= "\udcff":
        return bytes([ord(first) - 0xDC00]), error.start + 1
    escaped, stop = codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
    return escaped, stop
