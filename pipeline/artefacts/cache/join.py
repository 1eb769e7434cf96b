"""Join of a cache's rows to a data set's samples: by content, never by position.

Samples are joined by key, so the order of the images does not matter, and subsets and supersets
work. A sample with the same key but another label or other decoded pixels is rejected, unless that
difference is accepted by name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Samples
from pipeline.errors import ArtefactMismatch

Mismatch: TypeAlias = Literal["labels", "pixels"]
"""A difference between a cache and a data set that the user can accept by name."""

ANY_LABELS: Final[tuple[Mismatch, ...]] = ("labels",)
"""For uses that ignore labels, because the teacher's outputs do not depend on them."""
ANYTHING: Final[tuple[Mismatch, ...]] = ("labels", "pixels")
"""For commands that only display a cache: the run that used it has checked the differences."""
_EXAMPLES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A data set's samples in a cache."""

    rows: NDArray[np.int64]
    """Cache row of every sample, (N,) int64; -1 where the cache has none."""
    accepted: tuple[Mismatch, ...]
    """Differences that were found and accepted, sorted by name."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) bool: the cache has the sample."""
        return self.rows >= 0

    @property
    def num_extra(self) -> int:
        """Samples that the cache does not have."""
        return int((self.rows < 0).sum())

    @property
    def is_identity(self) -> bool:
        """Row i is sample i."""
        return bool((self.rows == np.arange(len(self.rows))).all())


def join_samples(
    cache: TeacherCache, samples: Samples, *, place: str, accept: Collection[Mismatch] = ()
) -> Joined:
    """Find every sample of a data set in a cache.

    Equal images share a key, and therefore views and logits, so any of their rows can be used. A
    row with the sample's own label is preferred, and among those the row at the sample's own index.
    A data set in the cache's order is therefore joined in that order.

    Args:
        cache: a sealed cache.
        samples: of the data set, N of them in any order.
        place: of the data set, for messages.
        accept: differences that are not an error.
    Raises:
        ArtefactMismatch: if no sample is in the cache, or if labels or decoded pixels differ; it
            counts them and names three.
    """
    labels = cache.labels
    rows = _rows(cache.keys, labels, samples)
    is_known = rows >= 0
    if not is_known.any():
        raise ArtefactMismatch(
            f"{cache.path} has none of the {len(samples):,} images of {place} (expected some in "
            "common). Run `heartcut cache-teacher` on this data, or pass a cache of this data."
        )
    differing: dict[Mismatch, NDArray[np.bool_]] = {
        "labels": is_known & (labels[rows] != samples.labels),
        "pixels": is_known & (cache.pixels[rows] != samples.pixels).any(axis=1),
    }
    accepted: list[Mismatch] = []
    for field, differs in differing.items():
        if not differs.any():
            continue
        if field not in accept:
            examples = {int(i): int(rows[i]) for i in np.flatnonzero(differs)[:_EXAMPLES]}
            counted = f"{int(differs.sum()):,} of the {len(rows):,} images of {place}"
            raise ArtefactMismatch(_mismatch(cache, samples, field, examples, counted=counted))
        accepted.append(field)
    return Joined(rows=rows, accepted=tuple(accepted))


def _rows(
    keys: NDArray[np.uint8], labels: NDArray[np.int64], samples: Samples
) -> NDArray[np.int64]:
    """Row of every sample among ``keys``, -1 where there is none."""
    words, wanted = _words(keys), _words(samples.keys)
    rows = np.full(len(samples), -1)
    first = np.arange(min(len(labels), len(samples)))
    in_place = (words[first] == wanted[first]).all(axis=1) & (
        labels[first] == samples.labels[first]
    )
    rows[first[in_place]] = first[in_place]
    rest = np.flatnonzero(rows < 0)
    if len(rest):
        order = np.lexsort((labels, words[:, 1], words[:, 0]))
        found_at, is_known = _find(words[order], labels[order], wanted[rest], samples.labels[rest])
        rows[rest] = np.where(is_known, order[found_at], -1)
    return rows


def _words(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64)


def _find(
    words: NDArray[np.uint64],
    labels: NDArray[np.int64],
    wanted: NDArray[np.uint64],
    wanted_labels: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions of wanted (key, label) pairs in sorted ones; of the key if no label matches.

    Returns:
        Positions, (n,) int64, clipped into range, and a mask (n,) bool of the keys that exist.
    """
    pairs = np.empty(len(words), dtype=[("high", "u8"), ("low", "u8"), ("label", "i8")])
    pairs["high"], pairs["low"], pairs["label"] = words[:, 0], words[:, 1], labels
    sought = np.empty(len(wanted), dtype=pairs.dtype)
    sought["high"], sought["low"], sought["label"] = wanted[:, 0], wanted[:, 1], wanted_labels
    last = len(words) - 1
    exact = np.minimum(np.searchsorted(pairs, sought), last)
    sought["label"] = np.iinfo(np.int64).min
    first = np.minimum(np.searchsorted(pairs, sought), last)
    has_pair = (words[exact] == wanted).all(axis=1) & (labels[exact] == wanted_labels)
    return np.where(has_pair, exact, first), (words[first] == wanted).all(axis=1)


def _mismatch(
    cache: TeacherCache,
    samples: Samples,
    field: Mismatch,
    examples: Mapping[int, int],
    *,
    counted: str,
) -> str:
    """The error message; ``examples`` maps a few differing samples to their cache rows."""
    if field == "labels":
        cached = cache.labels
        listed = [
            f"sample {i} ({samples.keys[i].tobytes().hex()[:12]}) has label {samples.labels[i]}, "
            f"the cache {cached[row]}"
            for i, row in examples.items()
        ]
        way_out = "Correct them"
    else:
        listed = [f"sample {i} ({samples.keys[i].tobytes().hex()[:12]})" for i in examples]
        way_out = "Decode and resize the images as the cache's team did"
    return (
        f"{cache.path} was made with other {field} of {counted}: {'; '.join(listed)}. "
        f"{way_out}, run `heartcut cache-teacher` on this data, or accept it with "
        f"`--accept-mismatch {field}`."
    )
