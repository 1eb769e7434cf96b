"""Provenance: content hashes of an artefact's inputs, in a canonical form.

An identity is the hash of a canonical JSON text, so the same inputs give the same id on any
machine; code is never hashed.
"""

import codecs
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

_READ_BYTES = 1 << 22
LARGE_BYTES = 1 << 30
_HASHED: dict[Path, tuple[tuple[int, ...], str]] = {}
"""State and digest of the large files that this process has hashed."""


def canonical_json(value: Json) -> bytes:
    """The canonical JSON text of ``value``: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def identity(kind: str, parts: Json) -> str:
    """SHA-256 of ``parts`` under the name ``kind``, 64 hex digits."""
    return hashlib.sha256(canonical_json([f"heartcut.{kind}", parts])).hexdigest()


def short(digest: str) -> str:
    """The first 12 digits of an id, as in paths and messages."""
    return digest[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def large_file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; of a file of 1 GiB or more once in a process.

    It is computed again when the file's size or times change. Hashing 100 GB takes minutes, and a
    comparison opens its data set for every student.
    """
    found = path.stat()
    if found.st_size < LARGE_BYTES:
        return file_sha256(path)
    state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    known = _HASHED.get(path.resolve())
    if known is None or known[0] != state:
        known = _HASHED[path.resolve()] = (state, file_sha256(path))
    return known[1]


def array_sha256(array: NDArray[np.generic]) -> str:
    """SHA-256 of an array's dtype, shape and little-endian bytes, hex."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.tobytes())
    return digest.hexdigest()


def text_of(content: bytes) -> str:
    """Text of a file that a user wrote: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: naming what it is instead.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError("it is not UTF-8 text but UTF-16 or binary (expected UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line:,} is not UTF-8 text (expected UTF-8)") from error


def sample_key(content: bytes) -> bytes:
    """The 16-byte key of a sample: a hash of its source file's bytes, or of its pixels."""
    return hashlib.blake2b(content, digest_size=16).digest()


def pixel_key(image: NDArray[np.uint8]) -> bytes:
    """The 16-byte hash of an image's shape and pixels."""
    shape = ",".join(str(size) for size in image.shape)
    return sample_key(f"{shape};".encode() + np.ascontiguousarray(image).tobytes())
