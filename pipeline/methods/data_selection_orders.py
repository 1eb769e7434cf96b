"""Orders in which a selection keeps rows: by score, in equal shares of classes, or drawn.

An order does not depend on how many rows are kept, so the kept sets are nested.

Shapes: N samples, n candidates, C classes.
"""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.floating]


def best_first(scores: Floats, *, candidates: Bools, seed: int) -> Ints:
    """Positions of the candidates, the highest score first, (n,).

    Equal scores are ordered by a draw from ``seed`` that depends only on position: holding rows
    out does not reorder the others.

    Args:
        scores: (N,) float; scores of rows that are not candidates are not read.
        candidates: (N,) bool.
        seed: seed of the order among equal scores.

    >>> best_first(np.array([0.2, -0.1, 0.3]), candidates=np.ones(3, bool), seed=0)
    array([2, 0, 1])
    """
    ties = np.random.default_rng(seed).permutation(len(scores))
    rows = np.lexsort((ties, -scores))
    return rows[candidates[rows]]


def classes_alike(rows: Ints, *, labels: Ints) -> Ints:
    """Order rows so that the first k rows have the same share of every class, for every k.

    The first k rows have floor(k n_c / n) or ceil(k n_c / n) of class c, its first ones in
    ``rows``. Largest remainders would not work: with them a class can lose a row as k grows. The
    next row is of the class with the lowest (rows so far + 1) / n_c among the classes with
    less than ceil((k + 1) n_c / n) rows; ties go to the lower class id (the quota method of
    Balinski and Young 1975, Amer. Math. Monthly 82, which keeps within both bounds).

    Args:
        rows: positions, best first, (n,).
        labels: class ids of all samples, (N,) int64.

    >>> classes_alike(np.arange(6), labels=np.array([0, 0, 0, 0, 1, 1]))
    array([0, 1, 4, 2, 3, 5])
    """
    own = labels[rows]
    sizes = np.bincount(own)
    places = places_in_class(rows, labels=labels)
    allowed = places * len(rows) // sizes[own]
    queue = np.lexsort((own, (places + 1) / sizes[own]))
    ordered = np.empty_like(rows)
    ordered[_earliest_free_slots(allowed[queue])] = rows[queue]
    return ordered


def places_in_class(rows: Ints, *, labels: Ints) -> Ints:
    """Number of rows of its own class before each row, (n,).

    Args:
        rows: positions, (n,).
        labels: class ids of all samples, (N,) int64.

    >>> places_in_class(np.array([3, 0, 1, 2]), labels=np.array([5, 5, 7, 5]))
    array([0, 1, 2, 0])
    """
    own = labels[rows]
    sizes = np.bincount(own)
    places = np.empty(len(rows), dtype=np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    places[np.argsort(own, kind="stable")] = np.arange(len(rows)) - starts
    return places


def drawn_by_percentile(
    rows: Ints, *, mean: float, concentration: float, num_samples: int, seed: int
) -> Ints:
    """Order rows by draws without replacement, weighted by their percentile.

    The lowest of n rows has percentile 0.5 / n and the highest (n - 0.5) / n, so that the
    density stays finite. The first k rows are k successive draws with chances in proportion to

        w = Beta(s; a, b),  a = mean * concentration,  b = (1 - mean) * concentration

    (IF-Beta, arXiv:2606.25488). The keys are u^(1/w) of Efraimidis and Spirakis 2006, as
    logarithms of logarithms to avoid underflow of small weights: log w - log(-log u).

    Args:
        rows: positions by descending score, (n,).
        mean: percentile around which rows are drawn, in (0, 1).
        concentration: a + b, positive.
        num_samples: N; every sample has its own u, by position.
        seed: seed of u.
    """
    percentiles = (len(rows) - 0.5 - np.arange(len(rows))) / len(rows)
    # [seed, 1], because the order among equal scores is drawn from `seed`.
    gumbel = np.random.default_rng([seed, 1]).gumbel(size=num_samples)
    keys = beta_log_density(percentiles, mean=mean, concentration=concentration) + gumbel[rows]
    return rows[np.argsort(-keys, kind="stable")]


def beta_log_density(percentiles: Floats, *, mean: float, concentration: float) -> Floats:
    """log Beta(s; a, b), (n,).

    Args:
        percentiles: s, in (0, 1), (n,).
        mean: a / (a + b), in (0, 1).
        concentration: a + b, positive.
    """
    a, b = mean * concentration, (1.0 - mean) * concentration
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return scale + (a - 1.0) * np.log(percentiles) + (b - 1.0) * np.log1p(-percentiles)


def _earliest_free_slots(allowed: Ints) -> Ints:
    """The earliest slot at or after ``allowed`` that no earlier row of the queue took, (n,)."""
    # free[s] points towards the first free slot at or after s; path halving keeps this fast.
    free = list(range(len(allowed) + 1))
    slots = np.empty_like(allowed)
    for place, wanted in enumerate(allowed.tolist()):
        slot = wanted
        while free[slot] != slot:
            free[slot] = free[free[slot]]
            slot = free[slot]
        free[slot] = slot + 1
        slots[place] = slot
    return slots
