"""Folds: equal parts of every class, decided by the samples' content, not by their positions.

A part that is predicted by a model of the others must not share an image with them. So equal
images, which have equal keys, are in the same part as far as the counts allow.

Shapes: N samples, C classes, F parts.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Keys = NDArray[np.uint8]


def stratified_folds(labels: Ints, keys: Keys, *, num_folds: int, seed: int) -> Ints:
    """Assign samples to folds; each fold can be left out and every class still has samples.

    See `stratified_parts`.

    Raises:
        ValueError: if there are fewer than 2 folds or fewer samples than folds, or if a class has
            a single sample, so that no sample is left to train on without its fold.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2, got {num_folds}")
    counts = np.bincount(labels)
    if (counts == 1).any():
        raise ValueError(
            f"class {int(np.argmax(counts == 1))} has a single sample (expected at least 2): "
            "without its fold there is no sample to train on"
        )
    return stratified_parts(labels, keys, num_parts=num_folds, seed=seed)


def stratified_parts(labels: Ints, keys: Keys, *, num_parts: int, seed: int) -> Ints:
    """Assign samples to equal parts of every class.

    The sizes of two parts differ by at most 1, and so do their numbers of samples of a class.
    Within these counts, samples of equal keys are in the same part, even with different labels.
    The part depends on (keys, labels, seed) and not on the order of the samples. The order only
    matters if the counts force equal samples into different parts.

    Args:
        labels: class ids, (N,) int64, not negative.
        keys: sample keys, (N, 16) uint8: hashes of the images.
        num_parts: F.
        seed: seed of the assignment.
    Returns:
        Part of every sample, (N,) int64 in [0, F).
    Raises:
        ValueError: if there are fewer samples than parts.
    """
    if not 1 <= num_parts <= len(labels):
        raise ValueError(f"num_parts must be in [1, {len(labels)}], got {num_parts}")
    rank = _rank(keys, seed=seed)
    room = _room(np.bincount(labels), num_parts)
    parts = np.full(len(labels), -1, dtype=np.int64)
    for rows in _copies(rank):
        _place_together(rows, labels, room=room, parts=parts)
    order = np.lexsort((rank, labels))
    left = order[parts[order] < 0]
    # The remaining room of each class equals its number of remaining samples.
    parts[left] = np.tile(np.arange(num_parts), len(room)).repeat(room.ravel())
    return parts


def _room(counts: Ints, num_parts: int) -> Ints:
    """Samples of each class in each part, (C, F).

    The surplus of a class goes to the parts after those that got the previous class's surplus.
    """
    size, extra = np.divmod(counts, num_parts)
    first = np.cumsum(extra) - extra
    turn = (np.arange(num_parts)[None, :] - first[:, None]) % num_parts
    room: Ints = size[:, None] + (turn < extra[:, None])
    return room


def _copies(rank: Ints) -> Iterator[Ints]:
    """Groups of samples with equal keys, the largest first, because they are hardest to place."""
    order = np.argsort(rank, kind="stable")
    sizes = np.bincount(rank)
    starts = np.cumsum(sizes) - sizes
    for group in np.argsort(-sizes, kind="stable")[: int((sizes > 1).sum())]:
        yield order[starts[group] : starts[group] + sizes[group]]


def _place_together(rows: Ints, labels: Ints, *, room: Ints, parts: Ints) -> None:
    """Put equal samples into the emptiest part that has room for all of them, if there is one."""
    classes, counts = np.unique(labels[rows], return_counts=True)
    spare = room[classes] - counts[:, None]
    if (spare >= 0).all(axis=0).any():
        best = int(spare.min(axis=0).argmax())
        room[classes, best] -= counts
        parts[rows] = best


def _rank(keys: Keys, *, seed: int) -> Ints:
    """Place of each sample's key in an order drawn by ``seed``, equal for equal keys, (N,)."""
    words = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)
    start = np.full(len(words), seed, dtype=np.uint64)
    drawn = _mixed(_mixed(_mixed(start) ^ words[:, 0]) ^ words[:, 1])
    # The words themselves order different keys that were mixed into the same number.
    unique = np.unique(np.column_stack([drawn, words]), axis=0, return_inverse=True)
    return unique[1].astype(np.int64).ravel()


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits by a bijection in which every bit depends on all others (splitmix64)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
