"""Image files: reading, decoding by Pillow, and resizing.

A file is decoded whole or not at all. What is unusual about an image that can be decoded is a note:
a count and a few names for the user, instead of Pillow's warnings, which do not name the file.
"""

import logging
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EFBIG, EINVAL, EISDIR
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.artefacts.records import printable
from pipeline.data.images.findings import (
    BROKEN_EXIF,
    FRAMES,
    HUGE,
    NOT_TURNED,
    TRANSPARENT,
    TURNED,
    shown,
)
from pipeline.data.images.kinds import described
from pipeline.errors import ArtefactMismatch

Pixels: TypeAlias = NDArray[np.uint8]
"""(H, W, 3)"""
Orientation: TypeAlias = Literal["ignore", "apply"]

MOST_BYTES: Final = 1 << 30
"""Largest image file; Pillow decodes no image of so many pixels."""

_EXIF_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_PIXELS: Final = 1 << 28
"""Pixels to which an image may be enlarged: one of 1 x 60,000 pixels would fill the memory."""
_SILENT: Final = logging.NullHandler()
_DRAWN_BY_OTHERS: Final = frozenset({"EPS", "WMF"})
"""Formats that Pillow hands to another program."""


class UnreadableImage(ArtefactMismatch):
    """A source file cannot be decoded as an image; ``reason`` says why in a few words."""

    def __init__(self, message: str, *, reason: str = "it cannot be decoded") -> None:
        super().__init__(message)
        self.reason = reason


def read_file(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_open_regular) as file:
            return file.readall()
    except OSError as error:
        raise UnreadableImage(
            f"{shown(path)} could not be read: {error.strerror} (expected an image file). "
            "Restore it, or pass --skip-corrupt to `heartcut prepare` to leave it out.",
            reason=str(error.strerror),
        ) from error


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file only: a pipe would wait for a writer that never comes."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    problem = None
    if stat.S_ISDIR(found.st_mode):
        problem = EISDIR, "Is a directory"
    elif not stat.S_ISREG(found.st_mode):
        problem = EINVAL, "it is a pipe, socket or device"
    elif found.st_size > MOST_BYTES:
        problem = EFBIG, f"it has {found.st_size:,} bytes, more than 1 GiB"
    if problem is not None:
        os.close(descriptor)
        raise OSError(*problem)
    return descriptor


@dataclass(frozen=True, kw_only=True)
class PixelRule:
    """Rule for the pixels of an image: turned or not, unchanged, shrunk, or resized to a square."""

    resize: int | None = None
    """Side in pixels of the central square; the shorter side is resized to it."""
    max_side: int | None = None
    """Longest side in pixels."""
    exif_orientation: Orientation = "ignore"

    def leaves(self, width: int, height: int) -> bool:
        """True if an image of this size keeps it."""
        return self.resize is None and max(width, height) <= (self.max_side or max(width, height))

    def sized(self, image: Image.Image) -> Image.Image:
        """The image in its stored size."""
        if self.resize is not None:
            return resize_and_crop(image, self.resize)
        return image if self.leaves(*image.size) else _shrink(image, self.max_side or 0)


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """Pixels of an image file."""

    pixels: Pixels
    is_plain_jpeg: bool = False
    """True if the file is an RGB or grey JPEG of exactly these pixels."""
    notes: frozenset[str] = frozenset()
    """What is unusual about the image, such as `NOT_TURNED`."""


_current = threading.local()
"""``notes``: of the image that this thread decodes."""


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Turn Pillow's warnings into notes, and reject truncated files whatever other code has set.

    Warnings belong to the process, so one thread enters this around the work of all. Pillow's log
    lines do not name the file either; what they report is raised too.
    """
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    log = logging.getLogger("PIL")
    propagates, log.propagate = log.propagate, False
    log.addHandler(_SILENT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", module=r"PIL(\.|$)")
            warnings.showwarning = _noting(warnings.showwarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        log.propagate = propagates
        log.removeHandler(_SILENT)


def _noting(show: Callable[..., None]) -> Callable[..., None]:
    """Make the function that shows warnings note those of an image, and pass on all others."""

    def note(message: Warning | str, category: type[Warning], *where: Any) -> None:
        notes = getattr(_current, "notes", None)
        if notes is None:
            show(message, category, *where)
        else:
            notes.add(_note_of(category, str(message)))

    return note


def _note_of(category: type[Warning], message: str) -> str:
    if issubclass(category, Image.DecompressionBombWarning):
        return HUGE
    if "Transparency" in message:
        return TRANSPARENT
    return (
        BROKEN_EXIF
        if "EXIF" in message
        else f"image with a warning of Pillow: {printable(message)}"
    )


def decode_file(content: bytes, path: Path, rule: PixelRule) -> DecodedImage:
    """Decode the content of the file at ``path``.

    Raises:
        UnreadableImage: if it is damaged, in another format, or of more than 8 bits per channel.
    """
    _current.notes = notes = set[str]()
    try:
        with Image.open(BytesIO(content)) as image:
            if image.format == "PNG":
                _require_checksums(content)
            if image.format in _DRAWN_BY_OTHERS:
                raise ValueError(f"{image.format} is a format that heartcut does not read")
            return decoded(image, rule, notes=notes)
    except MemoryError:
        raise
    except WidePixels as error:
        raise UnreadableImage(
            f"{shown(path)} {error}. Convert it, or pass --skip-corrupt to `heartcut prepare` to "
            "leave it out.",
            reason="more than 8 bits per channel",
        ) from error
    # Decoders raise errors of any kind for damaged files: AVIF's raises RuntimeError.
    except Exception as error:
        reason = _reason(content, error)
        raise UnreadableImage(
            f"{shown(path)} is not a readable image: {reason} ({len(content):,} bytes). "
            "Repair or remove it, or pass --skip-corrupt to `heartcut prepare` to leave it out.",
            reason=re.sub(r" ?\([^)]*\d[^)]*\)", "", reason),  # one reason for all numbers in it
        ) from error
    finally:
        _current.notes = None


class WidePixels(ValueError):
    """Pixels of more than 8 bits per channel, which Pillow would clip to white or black."""


def decoded(image: Image.Image, rule: PixelRule, *, notes: set[str]) -> DecodedImage:
    """RGB pixels of an open image: turned and resized by ``rule``, which adds to ``notes``."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.add(FRAMES)  # a second picture in an MPO is a camera's own thumbnail or depth map
    image.load()
    if image.mode.startswith(("I", "F")):
        raise WidePixels(f"has pixels of mode {image.mode} (expected 8 bits per channel)")
    if _is_transparent(image):
        notes.add(TRANSPARENT)
    turn = _TURNS.get(_orientation(image, notes))
    rgb = image.convert("RGB")
    if turn is not None:
        notes.add(TURNED if rule.exif_orientation == "apply" else NOT_TURNED)
        if rule.exif_orientation == "apply":
            rgb = rgb.transpose(turn)
    is_jpeg = image.format == "JPEG" and image.mode in ("RGB", "L") and rule.leaves(*rgb.size)
    return DecodedImage(
        pixels=np.asarray(rule.sized(rgb)),
        is_plain_jpeg=is_jpeg and TURNED not in notes,
        notes=frozenset(notes),
    )


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    with_alpha = image if image.mode in ("RGBA", "LA", "PA") else image.convert("RGBA")
    lowest, _ = with_alpha.getchannel("A").getextrema()
    return float(lowest) < 255  # type: ignore[arg-type]


def _orientation(image: Image.Image, notes: set[str]) -> int:
    """EXIF orientation, 1 to 8; Pillow's TIFF reader has applied it already."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise errors of any kind, and the pixels are sound
        notes.add(BROKEN_EXIF)
        return 1


def _require_checksums(content: bytes) -> None:
    """Check the critical chunks of a PNG: Pillow does not read the checksums of the pixels."""
    position, view = 8, memoryview(content)
    while position + 8 <= len(content):
        end = position + 8 + int.from_bytes(view[position : position + 4])
        kind = bytes(view[position + 4 : position + 8])
        is_critical = not kind[0] & 0x20
        if is_critical:
            if end + 4 > len(content):
                raise ValueError("image file is truncated")
            if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4]):
                raise ValueError(f"wrong checksum in {kind.decode('ascii', 'backslashreplace')}")
        if kind == b"IEND":
            return
        position = end + 4


def _reason(content: bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError) or not content:
        return described(content)
    text = str(error).replace(repr(BytesIO), "").strip()
    return printable(text or type(error).__name__)


def _shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Resize in proportion so that the longer side has ``max_side`` pixels."""
    scale = max_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Resize so that the shorter side has ``side`` pixels, and crop the centre square."""
    scale = side / min(image.size)
    width, height = (max(side, round(size * scale)) for size in image.size)
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"{image.size[1]} x {image.size[0]} pixels become {height:,} x {width:,} by "
            f"`prepare.resize = {side}`"
        )
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return resized.crop((left, top, left + side, top + side))
