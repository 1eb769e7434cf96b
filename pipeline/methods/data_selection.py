"""Data selection: which samples are distilled; the rest are supervised by their labels.

Lan et al. 2024, arXiv:2404.03693 (the set D^t). Strategies `random`, `correct`, `all`
and `none` are the baselines that an influence score has to beat.

Every strategy ranks the candidates, keeps the best, and lets no class collapse:
``class_quota`` q keeps at least ceil(q * kept_share * n_class) rows of each class, where
kept_share is the share of the candidates that the strategy keeps on its own. A strategy
with a threshold adds the best-ranked rows of a class that falls short; one with a fixed
count reserves the quotas first and fills up by rank, so that its count stays exact.

Nested (10 % is inside 20 %): always without a quota. With one, at most
max(0, C - (1 - q)(k2 - k1)) rows of the smaller set of k1 rows are missing from the larger
one of k2, because every ceil can round up by one; so the sets are nested once
(1 - q)(k2 - k1) >= C. (Fill up by rank to the depth reached at k1: the quotas have grown by
less than q (k2 - k1) + C rows in all, and k2 - k1 rows are free for them.)

Shapes: N samples, C classes.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["influence", "correct", "random", "all", "none"]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
Strings = NDArray[np.str_]

_T = TypeVar("_T")

HELD_OUT = "held out"
CLASS_QUOTA = "class quota"


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What becomes of each sample, each (N,)."""

    selected: Bools
    """Distilled."""

    rank: Ints
    """0 = best; a permutation of 0 ... N - 1 with the held-out rows last."""

    reason: Strings
    """Why the row is selected or not, two or three words."""


def select_influence(
    scores: Floats,
    *,
    labels: Ints,
    candidates: Bools,
    fraction: float | None,
    class_quota: float,
    seed: int,
) -> Selection:
    """Keep the rows whose distillation is predicted to help.

    Args:
        scores: (N,) float, positive = distilling the row lowers the held-out loss.
        labels: ground-truth class ids, (N,) int64.
        candidates: rows that may be selected, (N,) bool.
        fraction: share of the candidates to keep, in [0, 1]; None keeps every score > 0.
        class_quota: in [0, 1], see the module.
        seed: of the order among equal scores.

    Raises:
        ValueError: if a setting is out of range, a candidate's score is NaN or the quotas
            do not fit into ``fraction``.

    >>> select_influence(np.array([0.2, -0.1, 0.3]), labels=np.zeros(3, np.int64),
    ...     candidates=np.ones(3, bool), fraction=None, class_quota=0.0, seed=0).selected
    array([ True, False,  True])
    """
    if np.isnan(scores[candidates]).any():
        raise ValueError(f"scores must be numbers, got {_num_nan(scores[candidates])} NaN")
    order = _Order.by_score(scores, labels=labels, candidates=candidates, seed=seed)
    if fraction is None:
        wanted = candidates & (scores > 0)
        kept = wanted | order.best_of_each_class(order.quotas(int(wanted.sum()), class_quota))
        return order.selection(kept, wanted=wanted, words=("score > 0", "score <= 0"))
    return order.top(fraction, class_quota=class_quota, words=("top fraction", "below fraction"))


def select_correct(
    teacher_correct: Bools, *, labels: Ints, candidates: Bools, class_quota: float, seed: int
) -> Selection:
    """Keep the rows that the teacher got right.

    Args:
        teacher_correct: (N,) bool.
        labels: ground-truth class ids, (N,) int64.
        candidates: rows that may be selected, (N,) bool.
        class_quota: in [0, 1], see the module.
        seed: of the order among the right rows and among the wrong ones.
    """
    scores = teacher_correct.astype(np.float64)
    order = _Order.by_score(scores, labels=labels, candidates=candidates, seed=seed)
    wanted = candidates & teacher_correct
    kept = wanted | order.best_of_each_class(order.quotas(int(wanted.sum()), class_quota))
    return order.selection(kept, wanted=wanted, words=("teacher correct", "teacher wrong"))


def select_random(
    *, labels: Ints, candidates: Bools, fraction: float, class_quota: float, seed: int
) -> Selection:
    """Keep a share of the candidates drawn by ``seed``; the baseline of the same size.

    The draw is keyed by row position alone: holding rows out does not reorder the others.

    Args:
        labels: ground-truth class ids, (N,) int64.
        candidates: rows that may be selected, (N,) bool.
        fraction: share of the candidates to keep, in [0, 1].
        class_quota: in [0, 1], see the module; 1 draws every class alike, where the
            count can be divided so.
        seed: of the draw.
    """
    flat = np.zeros(len(labels))
    order = _Order.by_score(flat, labels=labels, candidates=candidates, seed=seed)
    return order.top(fraction, class_quota=class_quota, words=("random", "not drawn"))


def select_all(*, candidates: Bools) -> Selection:
    """Keep every candidate, ranked by position."""
    return _unranked(candidates, selected=candidates, reason="all")


def select_none(*, candidates: Bools) -> Selection:
    """Keep no row: plain training."""
    return _unranked(candidates, selected=np.zeros_like(candidates), reason="none")


def select_samples(
    strategy: Strategy,
    *,
    labels: Ints,
    candidates: Bools,
    seed: int,
    scores: Floats | None = None,
    teacher_correct: Bools | None = None,
    fraction: float | None = None,
    class_quota: float = 0.0,
) -> Selection:
    """Apply a strategy by its name; refuses a setting that the strategy would not read.

    Args:
        strategy: one of `Strategy`.
        labels: ground-truth class ids, (N,) int64.
        candidates: rows that may be selected, (N,) bool; the others are held out.
        seed: of draws and of the order among equal scores.
        scores: (N,) float, positive = helpful; required by "influence", which alone reads it.
        teacher_correct: (N,) bool; required by "correct", which alone reads it.
        fraction: share of the candidates to keep, in [0, 1]; required by "random", optional
            for "influence", refused by the others.
        class_quota: in [0, 1], see the module; "all" and "none" meet every quota as they are.

    Raises:
        ValueError: if a setting is out of range, missing, or without effect; if the shapes
            differ; or if the quotas do not fit into ``fraction``.
    """
    _require_vectors(labels, candidates, scores, teacher_correct)
    if strategy not in ("influence", "correct", "random", "all", "none"):
        raise ValueError(f"strategy {strategy!r} is unknown")
    if fraction is not None and strategy in ("correct", "all", "none"):
        raise ValueError(f'fraction has no effect on strategy "{strategy}", got {fraction}')
    match strategy:
        case "influence":
            return select_influence(
                _required(scores, name="scores", strategy=strategy),
                labels=labels,
                candidates=candidates,
                fraction=fraction,
                class_quota=class_quota,
                seed=seed,
            )
        case "correct":
            return select_correct(
                _required(teacher_correct, name="teacher_correct", strategy=strategy),
                labels=labels,
                candidates=candidates,
                class_quota=class_quota,
                seed=seed,
            )
        case "random":
            return select_random(
                labels=labels,
                candidates=candidates,
                fraction=_required(fraction, name="fraction", strategy=strategy),
                class_quota=class_quota,
                seed=seed,
            )
        case "all":
            return select_all(candidates=candidates)
        case "none":
            return select_none(candidates=candidates)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """Candidates in the order in which a strategy would keep them."""

    rows: Ints
    """Positions of the n candidates, best first, (n,)."""

    labels: Ints
    candidates: Bools

    @classmethod
    def by_score(cls, scores: Floats, *, labels: Ints, candidates: Bools, seed: int) -> "_Order":
        """Highest score first; equal scores in an order drawn from ``seed`` by position."""
        ties = np.random.default_rng(seed).permutation(len(labels))
        rows = np.lexsort((ties, -scores))
        return cls(rows=rows[candidates[rows]], labels=labels, candidates=candidates)

    def quotas(self, num_kept: int, class_quota: float) -> Ints:
        """Rows that each class must keep when the strategy keeps ``num_kept``, (C,)."""
        if not 0.0 <= class_quota <= 1.0:
            raise ValueError(f"class_quota must be in [0, 1], got {class_quota}")
        sizes = np.bincount(self.labels[self.rows])
        exact = class_quota * num_kept * sizes / max(len(self.rows), 1)
        # 0.55 * 27000 / 10 comes out a hair above 1485, which must not become 1486.
        return np.ceil(exact - 1e-9).astype(np.int64)

    def best_of_each_class(self, counts: Ints) -> Bools:
        """The first ``counts[c]`` rows of every class c, (N,) bool."""
        best = np.zeros(len(self.labels), dtype=np.bool_)
        for label, count in enumerate(counts):
            best[self.rows[self.labels[self.rows] == label][:count]] = True
        return best

    def top(self, fraction: float, *, class_quota: float, words: tuple[str, str]) -> Selection:
        """Keep exactly round(fraction * n): the quotas first, then by rank."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        num_kept = round(fraction * len(self.rows))
        quotas = self.quotas(num_kept, class_quota)
        if quotas.sum() > num_kept:
            raise ValueError(
                f"class_quota {class_quota} reserves {quotas.sum()} rows, but fraction "
                f"{fraction} keeps {num_kept}. Lower class_quota or raise fraction."
            )
        kept = self.best_of_each_class(quotas)
        spare = self.rows[~kept[self.rows]]
        kept[spare[: num_kept - int(quotas.sum())]] = True
        wanted = np.zeros_like(kept)
        wanted[self.rows[:num_kept]] = True
        return self.selection(kept, wanted=wanted, words=words)

    def selection(self, kept: Bools, *, wanted: Bools, words: tuple[str, str]) -> Selection:
        """Word the outcome: ``wanted`` rows would be kept without a quota."""
        yes, no = words
        reason = np.where(kept, np.where(wanted, yes, CLASS_QUOTA), no)
        return Selection(
            selected=kept,
            rank=_ranks(self.rows, candidates=self.candidates),
            reason=np.where(self.candidates, reason, HELD_OUT),
        )


def _unranked(candidates: Bools, *, selected: Bools, reason: str) -> Selection:
    return Selection(
        selected=selected.copy(),
        rank=_ranks(np.flatnonzero(candidates), candidates=candidates),
        reason=np.where(candidates, reason, HELD_OUT),
    )


def _ranks(rows: Ints, *, candidates: Bools) -> Ints:
    """Position of each sample in ``rows`` followed by the held-out rows, (N,)."""
    ranks = np.empty(len(candidates), dtype=np.int64)
    ranks[np.concatenate([rows, np.flatnonzero(~candidates)])] = np.arange(len(candidates))
    return ranks


def _require_vectors(labels: Ints, *others: NDArray[np.generic] | None) -> None:
    for other in others:
        if other is not None and other.shape != labels.shape:
            raise ValueError(
                f"inputs must have one value per sample, got {other.shape} "
                f"beside {labels.shape} labels"
            )


def _required(value: _T | None, *, name: str, strategy: Strategy) -> _T:
    if value is None:
        raise ValueError(f'strategy "{strategy}" needs {name}, got None')
    return value


def _num_nan(scores: Floats) -> int:
    return int(np.isnan(scores).sum())
