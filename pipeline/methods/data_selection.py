"""Data selection: the choice of samples to distil; the rest are supervised by their labels.

Lan et al. 2024, arXiv:2404.03693 (the set D^t). A strategy orders the candidates and keeps the
first ones: a ``fraction`` of the candidates, or the rows that pass its own threshold.

    influence         rows whose distillation lowers held-out loss most; own threshold:
                      score - num_errors * error > threshold (0 unless set)
    class-balanced    as influence with a fraction, but the same share of every class
    beta              drawn around a percentile of self-influence (IF-Beta, arXiv:2606.25488)
    param-change      rows whose soft labels move the head most (Yang et al. 2023,
                      arXiv:2205.09329)
    label-issue-free  rows without a label issue; all of them, or these first
    correct           rows that the teacher gets right; all of them, or these first
    el2n              rows of lowest EL2N; own threshold: EL2N < threshold
    random            a draw of the same size, the baseline for every score
    all, none         every row, or no row

``class_quota`` q protects small classes: at least ceil(q * kept_share * n_class) rows of each
class are kept, where kept_share is the share of the candidates that the strategy keeps on its own.
A threshold adds the best-ranked rows of a class that falls short; a fraction reserves the quotas
first and fills up by rank, so that its count stays exact. No quota applies to "class-balanced",
which keeps its own shares, nor to "all" and "none".

Selections are nested (10 % is inside 20 % for every strategy; a higher threshold inside a lower
one) without a quota. They are always nested for "class-balanced", whose count is exact too and
keeps every class to within one row of its share. With a quota, at most
max(0, C - (1 - q)(k2 - k1)) rows of the smaller set of k1 rows are missing from the larger
one of k2, because every ceil can round up by one; so the sets are nested once
(1 - q)(k2 - k1) >= C. (Fill up by rank to the depth reached at k1: the quotas have grown by
less than q (k2 - k1) + C rows in all, and k2 - k1 rows are free for them.)

Shapes: N samples, C classes.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.methods.catalogue import Strategy
from pipeline.methods.data_selection_orders import (
    Bools,
    Floats,
    Ints,
    best_first,
    classes_alike,
    drawn_by_percentile,
    places_in_class,
)
from pipeline.methods.data_selection_rules import Rule, SelectionCandidates, require_readable

Strings: TypeAlias = NDArray[np.str_]
Reasons: TypeAlias = tuple[str, str]

HELD_OUT = "held out"
CLASS_QUOTA = "class quota"
BY_FRACTION = ("top fraction", "below fraction")


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Outcome for each sample, each (N,)."""

    selected: Bools
    """True for samples to distil."""

    rank: Ints
    """Rank of each row, 0 = best; a permutation of 0 ... N - 1 with the held-out rows last."""

    reason: Strings
    """Reason for selecting the row or not, in two or three words."""


def select_samples(
    strategy: Strategy, samples: SelectionCandidates, *, rule: Rule, seed: int
) -> Selection:
    """Apply a strategy by its name.

    Args:
        strategy: name of the strategy, see the module.
        samples: labels, candidates and the score that the strategy reads.
        rule: fraction, threshold and quota to keep.
        seed: seed of draws and of the order among equal scores, both by row position.

    Raises:
        ValueError: if a setting is out of range, missing, or without effect; if the shapes
            differ; if a candidate's score is NaN; or if the quotas do not fit into the fraction.

    >>> samples = SelectionCandidates(labels=np.zeros(3, np.int64), candidates=np.ones(3, bool),
    ...     scores=np.array([0.2, -0.1, 0.3]))
    >>> select_samples("influence", samples, rule=Rule(), seed=0).selected
    array([ True, False,  True])
    """
    require_readable(strategy, samples, rule=rule)
    match strategy:
        case "influence":
            return _influence(samples, rule=rule, seed=seed)
        case "class-balanced":
            return _class_balanced(samples, rule=rule, seed=seed)
        case "beta":
            return _beta(samples, rule=rule, seed=seed)
        case "param-change":
            return _Order.by(_scores(samples), samples, rule=rule, seed=seed).top(BY_FRACTION)
        case "label-issue-free":
            return _flagged(samples, rule=rule, seed=seed, words=("no label issue", "label issue"))
        case "correct":
            return _flagged(
                samples, rule=rule, seed=seed, words=("teacher correct", "teacher wrong")
            )
        case "el2n":
            return _el2n(samples, rule=rule, seed=seed)
        case "random":
            flat = np.zeros(len(samples.labels))
            return _Order.by(flat, samples, rule=rule, seed=seed).top(("random", "not drawn"))
        case "all":
            return _unranked(samples, selected=samples.candidates, reason="all")
        case "none":
            return _unranked(samples, selected=np.zeros_like(samples.candidates), reason="none")


def _influence(samples: SelectionCandidates, *, rule: Rule, seed: int) -> Selection:
    """Keep the fraction that helps most, or all rows that help by ``num_errors`` standard errors
    (negative: all except those that harm by that many)."""
    scores, name = _scores(samples), "score"
    if samples.errors is not None:
        scores = scores - rule.num_errors * samples.errors
        name = "lower bound" if rule.num_errors > 0 else "upper bound"
    order = _Order.by(scores, samples, rule=rule, seed=seed)
    if rule.fraction is not None:
        return order.top(BY_FRACTION)
    bound = 0.0 if rule.threshold is None else rule.threshold
    return order.passing(scores > bound, words=(f"{name} > {bound:g}", f"{name} <= {bound:g}"))


def _class_balanced(samples: SelectionCandidates, *, rule: Rule, seed: int) -> Selection:
    rows = best_first(_scores(samples), candidates=samples.candidates, seed=seed)
    rows = classes_alike(rows, labels=samples.labels)
    no_quota = replace(rule, class_quota=0.0)
    return _Order(rows=rows, samples=samples, rule=no_quota).top(("top of class", "below top"))


def _beta(samples: SelectionCandidates, *, rule: Rule, seed: int) -> Selection:
    assert rule.beta is not None
    mean, concentration = rule.beta
    rows = drawn_by_percentile(
        best_first(_scores(samples), candidates=samples.candidates, seed=seed),
        mean=mean,
        concentration=concentration,
        num_samples=len(samples.labels),
        seed=seed,
    )
    return _Order(rows=rows, samples=samples, rule=rule).top(("drawn", "not drawn"))


def _flagged(samples: SelectionCandidates, *, rule: Rule, seed: int, words: Reasons) -> Selection:
    """Keep the rows of score 1, or the fraction with these first."""
    scores = _scores(samples)
    if not np.isin(scores[samples.candidates], (0.0, 1.0)).all():
        raise ValueError("scores must be 0 or 1 for this strategy, got others")
    order = _Order.by(scores, samples, rule=rule, seed=seed)
    if rule.fraction is not None:
        return order.top(BY_FRACTION)
    return order.passing(scores == 1.0, words=words)


def _el2n(samples: SelectionCandidates, *, rule: Rule, seed: int) -> Selection:
    scores = _scores(samples)
    order = _Order.by(scores, samples, rule=rule, seed=seed)
    if rule.threshold is None:
        return order.top(BY_FRACTION)
    words = (f"el2n < {rule.threshold:g}", f"el2n >= {rule.threshold:g}")
    return order.passing(-scores < rule.threshold, words=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """Candidates in the order in which a strategy keeps them."""

    rows: Ints
    """Positions of the n candidates, best first, (n,)."""

    samples: SelectionCandidates
    rule: Rule

    @classmethod
    def by(cls, scores: Floats, samples: SelectionCandidates, *, rule: Rule, seed: int) -> "_Order":
        rows = best_first(scores, candidates=samples.candidates, seed=seed)
        return cls(rows=rows, samples=samples, rule=rule)

    def top(self, words: Reasons) -> Selection:
        """Keep exactly round(fraction * n): the quotas first, then by rank."""
        assert self.rule.fraction is not None
        num_kept = round(self.rule.fraction * len(self.rows))
        quotas = self._quotas(num_kept)
        if quotas.sum() > num_kept:
            raise ValueError(
                f"class_quota {self.rule.class_quota} reserves {quotas.sum()} rows, but fraction "
                f"{self.rule.fraction} keeps {num_kept}. Lower class_quota or raise fraction."
            )
        kept = self._best_of_each_class(quotas)
        spare = self.rows[~kept[self.rows]]
        kept[spare[: num_kept - int(quotas.sum())]] = True
        wanted = np.zeros_like(kept)
        wanted[self.rows[:num_kept]] = True
        return self._selection(kept, wanted=wanted, words=words)

    def passing(self, passed: Bools, *, words: Reasons) -> Selection:
        """Keep the candidates that passed, and the best others of a class that falls short."""
        wanted = self.samples.candidates & passed
        kept = wanted | self._best_of_each_class(self._quotas(int(wanted.sum())))
        return self._selection(kept, wanted=wanted, words=words)

    def _quotas(self, num_kept: int) -> Ints:
        """Rows that each class must keep when the strategy keeps ``num_kept``, (C,)."""
        sizes = np.bincount(self.samples.labels[self.rows])
        exact = self.rule.class_quota * num_kept * sizes / max(len(self.rows), 1)
        # 0.55 * 27000 / 10 is slightly above 1485 in float64, and ceil must not make it 1486.
        return np.ceil(exact - 1e-9).astype(np.int64)

    def _best_of_each_class(self, counts: Ints) -> Bools:
        """The first ``counts[c]`` rows of every class c, (N,) bool."""
        labels = self.samples.labels
        best = np.zeros(len(labels), dtype=np.bool_)
        places = places_in_class(self.rows, labels=labels)
        best[self.rows[places < counts[labels[self.rows]]]] = True
        return best

    def _selection(self, kept: Bools, *, wanted: Bools, words: Reasons) -> Selection:
        """The outcome with reasons; ``wanted`` rows would be kept without a quota."""
        yes, no = words
        candidates = self.samples.candidates
        reason = np.where(kept, np.where(wanted, yes, CLASS_QUOTA), no)
        return Selection(
            selected=kept,
            rank=_ranks(self.rows, candidates=candidates),
            reason=np.where(candidates, reason, HELD_OUT),
        )


def _unranked(samples: SelectionCandidates, *, selected: Bools, reason: str) -> Selection:
    candidates = samples.candidates
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


def _scores(samples: SelectionCandidates) -> Floats:
    assert samples.scores is not None
    return samples.scores.astype(np.float64)
