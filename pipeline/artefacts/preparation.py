"""Parts of dataset.json that say how the images were prepared: pixels, and what was found."""

from typing import Literal

from pipeline.artefacts.records import Record


class Finding(Record):
    """Files of the source that have something in common, such as the reason to leave them out."""

    what: str
    """What one of them is."""
    count: int
    kinds: tuple[str, ...] = ()
    """Some of their suffixes or names."""
    examples: tuple[str, ...]
    """At most three of their paths, or of pairs of paths."""


class Preprocessing(Record):
    """How the stored pixels are made from an image file."""

    resize: int | None
    """Side in pixels of the central square; the shorter side is resized to it."""
    max_side: int | None
    """Longest side in pixels; larger images are shrunk to it."""
    exif_orientation: Literal["ignore", "apply"]
    store: Literal["raw", "jpeg", "mixed"]
    """Pixels, JPEGs, or JPEGs only for images of more than ``raw_pixels`` pixels."""
    raw_pixels: int
    quality: int
    """JPEG quality, 1 to 100."""
