"""Small pictures as text within a page."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LARGEST_SIDE = 96
_LOSSLESS_SIDE = 40
"""Smaller images are told apart by single pixels, and cost little as PNG."""
_QUALITY = 80


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image, (H, W, 3) uint8, as a `data:` address: PNG if it is small, else a small JPEG."""
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        kind = "png"
        image.save(out, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        image.save(out, format="JPEG", quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
