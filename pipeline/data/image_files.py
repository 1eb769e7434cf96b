"""Image files: reading, decoding by Pillow, and resizing."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ArtefactMismatch

Pixels: TypeAlias = NDArray[np.uint8]
"""(H, W, 3)"""


class UnreadableImage(ArtefactMismatch):
    """A source file cannot be decoded as an image."""


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(
            f"{path} could not be read: {error.strerror} (expected the image that was "
            "listed). Restore it, or pass --skip-corrupt to leave it out."
        ) from error


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Rule for the size of an image: unchanged, shrunk, or resized and cropped to a square."""

    resize: int | None = None
    """Side in pixels of the central square; the shorter side is resized to it."""
    max_side: int | None = None
    """Longest side in pixels."""

    def leaves(self, width: int, height: int) -> bool:
        """True if an image of this size is left unchanged."""
        return self.resize is None and max(width, height) <= (self.max_side or max(width, height))

    def apply(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            return resize_and_crop(image, self.resize)
        return image if self.leaves(*image.size) else _shrink(image, self.max_side or 0)


def is_plain_jpeg(content: bytes, size: SizeRule) -> bool:
    """True if a readable file is an RGB or grey JPEG and ``size`` leaves its pixels unchanged."""
    with Image.open(BytesIO(content)) as image:
        return image.format == "JPEG" and image.mode in ("RGB", "L") and size.leaves(*image.size)


def decode_file(content: bytes, path: Path, size: SizeRule) -> Pixels:
    try:
        with Image.open(BytesIO(content)) as image:
            mode, rgb = image.mode, image.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        reason = "it is empty" if not content else str(error).replace(repr(BytesIO), "")
        if "cannot identify" in reason:
            reason = "no image format is recognised"
        raise UnreadableImage(
            f"{path} is not a readable image: {reason} ({len(content):,} bytes). "
            "Repair or remove it, or pass --skip-corrupt to leave it out."
        ) from error
    if mode.startswith(("I", "F")):  # Pillow silently clips wide pixels to white or black
        raise UnreadableImage(
            f"{path} has pixels of mode {mode} (expected 8 bits per channel). "
            "Convert it, or pass --skip-corrupt to leave it out."
        )
    return np.asarray(size.apply(rgb))


def _shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Resize in proportion so that the longer side has ``max_side`` pixels."""
    scale = max_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Resize so that the shorter side has ``side`` pixels, and crop the centre square."""
    scale = side / min(image.size)
    width, height = (max(side, round(size * scale)) for size in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return resized.crop((left, top, left + side, top + side))
