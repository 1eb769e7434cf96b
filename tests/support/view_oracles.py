"""Views as their specification says, in Python integers alone, and resizing as Pillow does it."""

import hashlib

import numpy as np
from PIL import Image

from pipeline.data.views import ALL

MASK = 2**64 - 1


def sample_keys(count, *, seed=0):
    digests = [
        hashlib.blake2b(f"{seed};{i}".encode(), digest_size=16).digest() for i in range(count)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(count, 16)


def mixed(h):
    h = (h + 0x9E3779B97F4A7C15) & MASK
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def hashed(*words):
    h = 0
    for word in words:
        h = mixed(h ^ word)
    return h


def key_words(key):
    content = bytes(key)
    return int.from_bytes(content[:8], "little"), int.from_bytes(content[8:], "little")


def specified_code(spec, key, view):
    side, flips = 2 * spec.padding + 1, 2 if spec.flip else 1
    if view == 0:
        return (spec.padding * side + spec.padding) * flips
    if spec.count == ALL:
        return view - 1
    return ((hashed(1, spec.seed, *key_words(key), view) >> 32) * side * side * flips) >> 32


def specified_pixels(spec, image, code):
    """Pad with zeros, cut out, mirror; also what torchvision's transforms do."""
    side, flips = 2 * spec.padding + 1, 2 if spec.flip else 1
    p, (height, width) = spec.padding, image.shape[:2]
    (dy, dx), flip = divmod(code // flips, side), code % flips
    crop = np.pad(image, ((p, p), (p, p), (0, 0)))[dy : dy + height, dx : dx + width]
    return crop[:, ::-1] if flip else crop


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def resized_by_pillow(image, box, side):
    """Rows, then columns; in one call Pillow 12 and later choose the order themselves."""
    top, left, height, width, flip = box
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    rows = crop.resize((width, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(rows.resize((side, side), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if flip else pixels
