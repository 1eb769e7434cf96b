"""Which row of a cache belongs to which sample of a data set: by content, never by position.

Samples are joined by key, so images in another order, a part of them, or more of them fit. What
has the same key and another label or other decoded pixels is refused, unless accepted by name.
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
"""What may differ between a cache and a data set, if it is accepted by name."""

ANY_LABELS: Final[tuple[Mismatch, ...]] = ("labels",)
"""Where labels play no part: the teacher has not seen any."""
ANYTHING: Final[tuple[Mismatch, ...]] = ("labels", "pixels")
"""Where a cache is only looked at: the run that used it has refused or accepted what differs."""
_EXAMPLES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A data set's samples in a cache."""

    rows: NDArray[np.int64]
    """Cache row of every sample, (N,) int64; -1 where the cache has none."""
    accepted: tuple[Mismatch, ...]
    """What differs and was accepted, in the order of its name."""

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

    Equal images share a key, hence their views and logits; any of their rows serves. One with the
    sample's own label is taken where there is one, that of the sample's own index first: so the
    cache's own order stays what it is.

    Args:
        cache: a sealed cache.
        samples: of the data set, N of them in any order.
        place: of the data set, for messages.
        accept: differences that are not refused.
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
            "common). Run `heartcut cache-teacher` on this data, or pass the cache that was."
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
            raise ArtefactMismatch(_refusal(cache, samples, field, examples, counted=counted))
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
    """Positions of wanted (key, label) pairs in sorted ones; of the key alone where it has others.

    Returns:
        Positions, clipped into range, and whether the key is there.
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


def _refusal(
    cache: TeacherCache,
    samples: Samples,
    field: Mismatch,
    examples: Mapping[int, int],
    *,
    counted: str,
) -> str:
    """The message; ``examples``: a few samples that differ, with their cache rows."""
    if field == "labels":
        cached = cache.labels
        told = [
            f"sample {i} ({samples.keys[i].tobytes().hex()[:12]}) has label {samples.labels[i]}, "
            f"the cache {cached[row]}"
            for i, row in examples.items()
        ]
        way_out = "Correct them"
    else:
        told = [f"sample {i} ({samples.keys[i].tobytes().hex()[:12]})" for i in examples]
        way_out = "Decode and resize the images as the cache's team did"
    return (
        f"{cache.path} was made with other {field} of {counted}: {'; '.join(told)}. "
        f"{way_out}, run `heartcut cache-teacher` on this data, or accept it with "
        f"`--accept-mismatch {field}`."
    )
