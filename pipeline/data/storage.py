"""In which form a beton holds an image, raw or as a JPEG, and what the loader makes of it."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.betons import Jpeg, StoredImage
from pipeline.data.image_files import Pixels
from pipeline.data.image_kernels import decode_jpeg

Store: TypeAlias = Literal["raw", "jpeg", "mixed"]

LARGEST_DIFFERENCE = 8.0
"""Mean difference of grey levels beyond which two decoders do not mean the same image. The fast
transform of the loader's decoder differs from Pillow's by 1 or so."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How images are stored."""

    store: Store = "raw"
    """Pixels, JPEGs, or JPEGs of those images that have more than ``raw_pixels``."""
    raw_pixels: int = 0
    quality: int = 90
    """Of the JPEGs that are made here, 1 to 100."""

    def stored(self, pixels: Pixels, jpeg: bytes | None) -> tuple[StoredImage, Pixels]:
        """What is stored of an image, and the pixels that the loader will see.

        Args:
            pixels: (H, W, 3) uint8.
            jpeg: the file that they come from, if it is one of these very pixels: it is stored as
                it is where the loader's decoder reads it as Pillow does.
        """
        height, width = pixels.shape[:2]
        if self.store == "raw" or (self.store == "mixed" and height * width <= self.raw_pixels):
            return pixels, pixels
        if jpeg is not None:
            kept = Jpeg(content=jpeg, height=height, width=width)
            decoded = decode(kept)
            if decoded is not None and _agree(decoded, pixels):
                return kept, decoded
        made = Jpeg(content=_encoded(pixels, self.quality), height=height, width=width)
        decoded = decode(made)
        assert decoded is not None, "Pillow writes JPEGs that TurboJPEG reads"
        return made, decoded


def decode(image: Jpeg) -> Pixels | None:
    """The pixels that the loader will see, (H, W, 3) uint8; None: the JPEG is damaged."""
    content = np.frombuffer(image.content, dtype=np.uint8)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    status = decode_jpeg(content, image.height, image.width, pixels.reshape(-1))
    return pixels if status == 0 else None


def _agree(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Compare every fourth pixel of every fourth row."""
    difference = one[::4, ::4].astype(np.int16) - other[::4, ::4]
    return float(np.abs(difference).mean()) <= LARGEST_DIFFERENCE


def _encoded(pixels: Pixels, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return file.getvalue()
