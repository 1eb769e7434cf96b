"""Replayable views: augmentation as a pure function of (spec, seed, sample key, view).

View 0 is the clean image. Views 1..count are crops of the zero-padded image, flipped or not, so an
image of any size has only (2p + 1)^2 views, twice as many with flips (p = 4 with flips: 162).
A view is keyed by the sample's *content*, never by its position, so it has the same pixels with any
order, batch size, thread count, beton or machine. Golden digests test that it is bit-identical.

    code     = (dy * (2p + 1) + dx) * F + flip          F = 2 with flips, else 1; dy, dx in 0..2p
    pixel    = padded[dy + y, dx + x], then mirrored along x where flip = 1
    clean    : dy = dx = p, flip = 0
    seeded   : code = bounded(hash(VIEW, seed, key_lo, key_hi, view), codes)
    all      : code = view - 1

`hashing` defines hash, bounded and the words of a key. Random resized crops are another kind of
view: `resized_crops`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.data.hashing import Keys, bounded, hash_words, key_words

Codes = NDArray[np.int32]

ALL = -1
"""``count`` of a spec of all views."""

_VIEW_DOMAIN = 1
_EPOCH_DOMAIN = 2


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Specification of a set of views."""

    padding: int = 0
    """Zero pixels on each side before the crop."""
    flip: bool = False
    count: int = 0
    """Views besides the clean one: 0 none, n by seed, `ALL` every crop and flip once."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be >= 0, got {self.padding}")
        if self.count < ALL:
            raise ValueError(f"count must be >= 0, or -1 for all views, got {self.count}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, got {self.seed}")
        if self.count != 0 and self.num_codes == 1:
            raise ValueError(
                "views without padding and flip are all the clean image; set count = 0"
            )

    @property
    def num_codes(self) -> int:
        """Number of different crops and flips."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    @property
    def clean_code(self) -> int:
        """The code that leaves an image unchanged."""
        side = 2 * self.padding + 1
        return (self.padding * side + self.padding) * (2 if self.flip else 1)

    @property
    def num_views(self) -> int:
        """Number of views besides the clean one."""
        return self.num_codes if self.count == ALL else self.count

    @property
    def clean(self) -> "ViewSpec":
        """Spec of the clean view alone, the unchanged image, which networks are evaluated on."""
        return ViewSpec()

    @property
    def name(self) -> str:
        """Short readable name, such as ``crop4-flip x 4``."""
        if self.count == 0:
            return "clean"
        size = "all" if self.count == ALL else str(self.count)
        return f"crop{self.padding}{'-flip' if self.flip else ''} x {size}"

    def as_json(self) -> dict[str, int | bool | float | str]:
        """Fields that identify the spec: only those that its views depend on."""
        if self.count == 0:
            return {"count": 0}
        fields: dict[str, int | bool | float | str] = asdict(self)
        if self.count == ALL:
            fields.pop("seed")
        return fields

    @classmethod
    def from_json(cls, stored: Mapping[str, int | bool]) -> "ViewSpec":
        """The spec from the fields of `as_json`."""
        return cls(
            padding=int(stored.get("padding", 0)),
            flip=bool(stored.get("flip", False)),
            count=int(stored["count"]),
            seed=int(stored.get("seed", 0)),
        )


def view_codes(spec: ViewSpec, keys: Keys, views: NDArray[np.int64]) -> Codes:
    """Code of view ``views[i]`` of the sample with key ``keys[i]``.

    Args:
        spec: the set of views.
        keys: sample keys, (N, 16) uint8.
        views: view numbers in 0..spec.num_views, (N,) int64; one number may be broadcast.
    Returns:
        Codes in 0..spec.num_codes - 1, (N,) int32.
    Raises:
        ValueError: if a view number is outside the spec.
    """
    views = np.broadcast_to(views, len(keys))
    if len(views) and (views.min() < 0 or views.max() > spec.num_views):
        raise ValueError(f"views must be in 0..{spec.num_views}, got {views.min()}..{views.max()}")
    if spec.count == ALL:
        codes = views - 1
    else:
        low, high = key_words(keys)
        hashed = hash_words(_VIEW_DOMAIN, np.uint64(spec.seed), low, high, views.astype(np.uint64))
        codes = bounded(hashed, spec.num_codes)
    return np.where(views == 0, spec.clean_code, codes).astype(np.int32)


def views_of_epoch(spec: ViewSpec, keys: Keys, *, epoch: int, seed: int) -> NDArray[np.int64]:
    """View number of every sample in one epoch of training, (N,) int64.

    Seeded views are used in turn, ``1 + epoch mod count``, the same number for every sample.
    With `ALL`, each sample draws its own view, as in ordinary random augmentation.
    """
    if spec.count == 0:
        return np.zeros(len(keys), dtype=np.int64)
    if spec.count != ALL:
        return np.full(len(keys), 1 + epoch % spec.count, dtype=np.int64)
    low, high = key_words(keys)
    drawn = hash_words(_EPOCH_DOMAIN, np.uint64(seed), low, high, np.uint64(epoch))
    return 1 + bounded(drawn, spec.num_codes)


@numba.njit(parallel=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def replay(  # type: ignore[no-untyped-def]
    images, codes, padding, num_flips, destination
):  # pragma: numba
    """Write view ``codes[i]`` of ``images[i]`` to ``destination[i]``; both (B, H, W, 3) uint8."""
    height, width = images.shape[1], images.shape[2]
    side = 2 * padding + 1
    for i in numba.prange(len(codes)):
        flipped = codes[i] % num_flips
        shift = codes[i] // num_flips
        dy, dx = shift // side - padding, shift % side - padding
        for y in range(height):
            source_y = y + dy
            if source_y < 0 or source_y >= height:
                destination[i, y] = 0
                continue
            for x in range(width):
                source_x = (width - 1 - x if flipped else x) + dx
                inside = 0 <= source_x < width
                for channel in range(3):
                    value = images[i, source_y, source_x, channel] if inside else np.uint8(0)
                    destination[i, y, x, channel] = value
