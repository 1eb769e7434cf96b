"""Random resized crops: the part of an image that a view shows, as a pure function.

The distribution is that of torchvision's RandomResizedCrop with flips: a crop of a uniform share of
the area and a log-uniform ratio of width to height, anywhere in the image, resized to a square. It
depends only on (spec, seed, sample key, view, size of the image), and not on the side that the crop
is resized to. Results are bit-identical everywhere: integers, and + - * / sqrt of IEEE 754.

    state      = hash(domain, seed, key_lo, key_hi, view)      of `hashing`; domain 3 for the views
                 of a seed, 4 for a new crop in every epoch
    word(c)    = mix(state xor c)
    flip       = word(0) >> 63, where there are flips
    try t = 0..9, the first that fits:
        share  = (word(1 + 4t) >> 11) / 2^53
        area   = height * width * (scale_min + (scale_max - scale_min) * share)
        ratio  = ratios[word(2 + 4t) >> 48]
        w, h   = round(sqrt(area * ratio)), round(sqrt(area / ratio))       half to even
        fits   : 0 < w <= width and 0 < h <= height
        top    = bounded(word(3 + 4t), height - h + 1)
        left   = bounded(word(4 + 4t), width - w + 1)
    none fits  : the largest central crop whose ratio is admissible
    clean view : the central square of side max(1, round(centre * min(height, width))), not flipped
    ratios     = 2^16 numbers, ratio_min * prod over the bits b = 0..15 of the index, highest first,
                 of g_b where the bit is set; g_0 = sqrt(ratio_max / ratio_min), g_b+1 = sqrt(g_b)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.data.hashing import Keys, Words, bounded, folded, hash_words, key_words
from pipeline.data.views import ALL

Boxes = NDArray[np.int32]
"""Top, left, height, width, flip of each sample's crop, (N, 5)."""

KIND = "rrc-flip"
TRIES = 10
_SEEDED_DOMAIN = 3
_FRESH_DOMAIN = 4
_RATIO_BITS = 16


@dataclass(frozen=True, kw_only=True)
class ResizedCropSpec:
    """Specification of a set of random resized crops."""

    size: int
    """Side in pixels that crops are resized to."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of width to height."""
    flip: bool = True
    centre: float = 0.875
    """Share of the shorter side that the clean view shows."""
    count: int = 0
    """Views besides the clean one: 0 none, n by seed, `ALL` a new one in every epoch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size}")
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"scale must be two shares, the smaller first, got {self.scale}")
        if not 0.0 < self.ratio[0] <= self.ratio[1] < np.inf:
            raise ValueError(f"ratio must be two numbers above 0, the smaller first: {self.ratio}")
        if not 0.0 < self.centre <= 1.0:
            raise ValueError(f"centre must be in (0, 1], got {self.centre}")
        if self.count < ALL:
            raise ValueError(f"count must be >= 0, or -1 for one per epoch, got {self.count}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, got {self.seed}")

    @property
    def num_views(self) -> int:
        """Number of views besides the clean one."""
        return 2**31 if self.count == ALL else self.count

    @property
    def clean(self) -> "ResizedCropSpec":
        """Spec of the clean view alone, which networks are evaluated on."""
        return ResizedCropSpec(size=self.size, centre=self.centre)

    @property
    def name(self) -> str:
        """Short readable name, such as ``rrc224-flip x 4``."""
        if self.count == 0:
            return f"centre{self.size}"
        count = "fresh" if self.count == ALL else str(self.count)
        return f"rrc{self.size}{'-flip' if self.flip else ''} x {count}"

    def as_json(self) -> dict[str, int | bool | float | str]:
        """Fields that identify the spec: only those that its views depend on."""
        clean: dict[str, int | bool | float | str] = {
            "kind": KIND,
            "size": self.size,
            "centre": self.centre,
            "count": self.count,
        }
        if self.count == 0:
            return clean
        of_crops = {
            "scale_min": self.scale[0],
            "scale_max": self.scale[1],
            "ratio_min": self.ratio[0],
            "ratio_max": self.ratio[1],
            "flip": self.flip,
        }
        seed = {} if self.count == ALL else {"seed": self.seed}
        return {**clean, **of_crops, **seed}

    @classmethod
    def from_json(cls, stored: Mapping[str, int | bool | float | str]) -> "ResizedCropSpec":
        """The spec from the fields of `as_json`."""
        clean = cls(size=int(stored["size"]), centre=float(stored["centre"]))
        count = int(stored["count"])
        if count == 0:
            return clean
        return replace(
            clean,
            scale=(float(stored["scale_min"]), float(stored["scale_max"])),
            ratio=(float(stored["ratio_min"]), float(stored["ratio_max"])),
            flip=bool(stored["flip"]),
            count=count,
            seed=int(stored.get("seed", 0)),
        )


def crop_boxes(
    spec: ResizedCropSpec,
    keys: Keys,
    views: NDArray[np.int64],
    *,
    sizes: NDArray[np.int64],
    seed: int | None = None,
) -> Boxes:
    """Crops that view ``views[i]`` shows of the sample with key ``keys[i]``.

    Args:
        spec: the set of views.
        keys: sample keys, (N, 16) uint8.
        views: view numbers in 0..spec.num_views, (N,) int64; one number may be broadcast.
        sizes: height and width of each image, (N, 2) int64.
        seed: seed of a training that sees a new crop in every epoch; None: the spec's seed.
    Returns:
        Boxes, (N, 5) int32: top, left, height, width, flip.
    Raises:
        ValueError: if a view number is outside the spec.
    """
    views = np.broadcast_to(views, len(keys))
    if len(views) and (views.min() < 0 or views.max() > spec.num_views):
        raise ValueError(f"views must be in 0..{spec.num_views}, got {views.min()}..{views.max()}")
    boxes = _central(spec, sizes)
    random = np.flatnonzero(views)
    if len(random):
        is_fresh = spec.count == ALL
        drawn_by = np.uint64(seed if is_fresh and seed is not None else spec.seed)
        low, high = key_words(keys[random])
        domain = _FRESH_DOMAIN if is_fresh else _SEEDED_DOMAIN
        state = hash_words(domain, drawn_by, low, high, views[random].astype(np.uint64))
        boxes[random] = _drawn(spec, state, sizes[random])
    return boxes


def _drawn(spec: ResizedCropSpec, state: Words, sizes: NDArray[np.int64]) -> Boxes:
    """The first try that fits, or the fallback."""
    boxes = _fallback(spec, sizes)
    left_over = np.arange(len(state))
    for attempt in range(TRIES):
        crop, fits = _try(spec, state[left_over], sizes[left_over], attempt)
        boxes[left_over[fits], :4] = crop[fits]
        left_over = left_over[~fits]
        if len(left_over) == 0:
            break
    if spec.flip:
        boxes[:, 4] = folded(state, np.uint64(0)) >> np.uint64(63)
    return boxes


def _try(
    spec: ResizedCropSpec, state: Words, sizes: NDArray[np.int64], attempt: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Crops (N, 4), and a mask (N,) of those that are inside their images."""
    words = [folded(state, np.uint64(1 + 4 * attempt + i)) for i in range(4)]
    height, width = sizes[:, 0], sizes[:, 1]
    share = (words[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    smallest, largest = spec.scale
    area = (height * width).astype(np.float64) * (smallest + (largest - smallest) * share)
    ratio = _ratios(*spec.ratio)[words[1] >> np.uint64(48)]
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top = bounded(words[2], np.where(fits, height - h + 1, 1).astype(np.uint64))
    left = bounded(words[3], np.where(fits, width - w + 1, 1).astype(np.uint64))
    return np.stack([top, left, h, w], axis=1), fits


def _fallback(spec: ResizedCropSpec, sizes: NDArray[np.int64]) -> Boxes:
    """The largest central crop of admissible ratio, without a flip."""
    height, width = sizes[:, 0], sizes[:, 1]
    ratio = width / height
    smallest, largest = spec.ratio
    h = np.where(ratio < smallest, np.rint(width / smallest), height)
    w = np.where(ratio > largest, np.rint(height * largest), width)
    return _centred(sizes, np.clip(h, 1, height), np.clip(w, 1, width))


def _central(spec: ResizedCropSpec, sizes: NDArray[np.int64]) -> Boxes:
    """The clean view."""
    side = np.maximum(np.rint(spec.centre * sizes.min(axis=1)), 1)
    return _centred(sizes, side, side)


def _centred(sizes: NDArray[np.int64], h: NDArray[np.float64], w: NDArray[np.float64]) -> Boxes:
    boxes = np.zeros((len(sizes), 5), dtype=np.int32)
    boxes[:, 2], boxes[:, 3] = h, w
    boxes[:, :2] = (sizes - boxes[:, 2:4]) // 2
    return boxes


@lru_cache(maxsize=8)
def _ratios(smallest: float, largest: float) -> NDArray[np.float64]:
    """A log-uniform table, (2^16,), from square roots: exp is not bit-identical across machines."""
    table, root = np.array([smallest]), np.float64(largest) / np.float64(smallest)
    for _ in range(_RATIO_BITS):
        root = np.sqrt(root)
        table = np.stack([table, table * root], axis=1).ravel()
    table.flags.writeable = False
    return table
