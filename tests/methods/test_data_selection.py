import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.methods.data_selection import select_samples
from pipeline.methods.data_selection_orders import beta_log_density
from pipeline.methods.data_selection_rules import Rule, SelectionCandidates
from tests.support.cases import looped

SEEDS = st.integers(0, 2**31)
FRACTIONS = st.floats(0.0, 1.0, exclude_min=True)
QUOTAS = st.sampled_from([0.0, 0.3, 0.5, 0.9])
BY_QUOTA = ["influence", "beta", "param-change", "label-issue-free", "correct", "el2n", "random"]
WITH_QUOTA = st.sampled_from(BY_QUOTA)
BY_FRACTION = st.sampled_from([*BY_QUOTA, "class-balanced"])
BY_SCORE = st.sampled_from(["influence", "param-change", "el2n", "class-balanced"])
FLAGS = ("label-issue-free", "correct")
EVERY_CASE = [
    ("influence", {}),
    ("influence", {"threshold": -0.3}),
    ("influence", {"num_errors": 1.5}),
    ("influence", {"num_errors": -1.5}),
    ("el2n", {"threshold": 0.4}),
    ("correct", {}),
    ("label-issue-free", {}),
    *((strategy, {"fraction": 0.4}) for strategy in [*BY_QUOTA, "class-balanced"]),
    ("all", {}),
    ("none", {}),
]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Inputs of a selection; classes are of unequal size, some scores tie."""

    labels: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    errors: np.ndarray
    flags: np.ndarray

    @property
    def num_candidates(self):
        return int(self.candidates.sum())

    def scores_of(self, strategy):
        if strategy in FLAGS:
            return self.flags
        return None if strategy in ("random", "all", "none") else self.scores

    def select(self, strategy, *, seed=0, **rule):
        if strategy == "beta":
            rule.setdefault("beta", (0.6, 5.0))
        samples = SelectionCandidates(
            labels=self.labels,
            candidates=self.candidates,
            scores=self.scores_of(strategy),
            errors=self.errors if rule.get("num_errors") else None,
        )
        return select_samples(strategy, samples, rule=Rule(**rule), seed=seed)

    def taken(self, order):
        return replace(self, **{name: values[order] for name, values in vars(self).items()})


def one_class(scores=None, *, num_samples=1000):
    """Samples of one class, all candidates."""
    return SelectionCandidates(
        labels=np.zeros(num_samples, dtype=np.int64),
        candidates=np.ones(num_samples, dtype=bool),
        scores=scores,
    )


@st.composite
def tables(draw):
    rng = np.random.default_rng(draw(SEEDS))
    num_samples, num_classes = draw(st.integers(30, 300)), draw(st.integers(1, 6))
    labels = rng.choice(num_classes, num_samples, p=rng.dirichlet(np.full(num_classes, 3.0)))
    scores = rng.normal(size=num_samples) + 0.7 * (labels - 1)
    return Table(
        labels=labels,
        candidates=rng.random(num_samples) < draw(st.sampled_from([0.7, 1.0])),
        scores=scores.round(1) if draw(st.booleans()) else scores,
        errors=rng.random(num_samples),
        flags=(rng.random(num_samples) < 0.8).astype(float),
    )


def class_sizes(table, rows):
    return np.bincount(table.labels[rows], minlength=table.labels.max() + 1)


def required(table, num_kept, quota):
    """ceil(q * kept_share * n_class) of every class, in exact integers over 1000."""
    per_mille = round(quota * 1000)
    sizes = class_sizes(table, table.candidates)
    return np.array([-(-per_mille * num_kept * n // (1000 * table.num_candidates)) for n in sizes])


@given(table=tables(), strategy=WITH_QUOTA, fraction=FRACTIONS, quota=QUOTAS, seed=SEEDS)
def test_a_fraction_keeps_its_count_exactly_and_every_quota(table, strategy, fraction, quota, seed):
    count = round(fraction * table.num_candidates)
    quotas = required(table, count, quota)
    assume(quotas.sum() <= count)
    kept = table.select(strategy, fraction=fraction, class_quota=quota, seed=seed).selected
    assert kept.sum() == count
    assert (class_sizes(table, kept) >= quotas).all()


def passes(table, strategy, rule):
    """Rows that a strategy's own threshold lets through, from the definitions."""
    if strategy in FLAGS:
        return table.candidates & (table.flags == 1)
    if strategy == "el2n":
        return table.candidates & (-table.scores < rule["threshold"])
    bounds = table.scores - rule.get("num_errors", 0.0) * table.errors
    return table.candidates & (bounds > rule.get("threshold", 0.0))


@given(
    table=tables(),
    case=st.sampled_from(EVERY_CASE[:6]),
    quota=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_threshold_keeps_its_rows_and_adds_only_what_a_quota_misses(table, case, quota):
    strategy, rule = case
    passed = passes(table, strategy, rule)
    selection = table.select(strategy, class_quota=quota, **rule)
    assert selection.selected[passed].all()
    wanted = np.maximum(class_sizes(table, passed), required(table, int(passed.sum()), quota))
    assert (class_sizes(table, selection.selected) == wanted).all()
    added = selection.selected & ~passed
    assert (selection.reason[added] == "class quota").all()


@given(table=tables(), strategy=BY_FRACTION, small=FRACTIONS, large=FRACTIONS, seed=SEEDS)
def test_without_a_quota_a_smaller_fraction_is_inside_a_larger_one(
    table, strategy, small, large, seed
):
    small, large = sorted([small, large])
    inner = table.select(strategy, fraction=small, seed=seed).selected
    outer = table.select(strategy, fraction=large, seed=seed).selected
    assert not (inner & ~outer).any()


@given(table=tables(), strategy=WITH_QUOTA, fractions=st.tuples(FRACTIONS, FRACTIONS), quota=QUOTAS)
def test_with_a_quota_no_more_rows_leave_than_the_stated_bound(table, strategy, fractions, quota):
    counts = [round(fraction * table.num_candidates) for fraction in sorted(fractions)]
    assume(all(required(table, count, quota).sum() <= count for count in counts))
    inner, outer = (
        table.select(strategy, fraction=fraction, class_quota=quota).selected
        for fraction in sorted(fractions)
    )
    num_classes = np.count_nonzero(class_sizes(table, table.candidates))
    bound = max(0.0, num_classes - (1 - quota) * (counts[1] - counts[0]))
    assert (inner & ~outer).sum() <= bound


@given(table=tables(), bounds=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_a_stricter_threshold_is_inside_a_looser_one(table, bounds):
    low, high = sorted(bounds)
    strict, loose = (table.select("influence", threshold=bound).selected for bound in (high, low))
    assert not (strict & ~loose).any()
    strict, loose = (table.select("el2n", threshold=bound).selected for bound in (low, high))
    assert not (strict & ~loose).any()


@given(table=tables(), strategy=BY_FRACTION, fraction=FRACTIONS, quota=QUOTAS)
def test_within_a_class_the_best_ranked_rows_are_kept(table, strategy, fraction, quota):
    count = round(fraction * table.num_candidates)
    assume(required(table, count, quota).sum() <= count)
    selection = table.select(strategy, fraction=fraction, class_quota=quota)
    for label in range(table.labels.max() + 1):
        in_class = table.candidates & (table.labels == label)
        kept = selection.rank[in_class & selection.selected]
        left = selection.rank[in_class & ~selection.selected]
        assert kept.max(initial=-1) < left.min(initial=len(table.labels))


@given(table=tables(), case=st.sampled_from(EVERY_CASE), quota=st.sampled_from([0.0, 0.3]))
def test_held_out_rows_are_never_selected_and_every_row_has_its_rank_and_reason(table, case, quota):
    strategy, rule = case
    selection = table.select(strategy, class_quota=quota, **rule)
    held_out = ~table.candidates
    assert not selection.selected[held_out].any()
    assert ((selection.reason == "held out") == held_out).all()
    assert (np.sort(selection.rank) == np.arange(len(table.labels))).all()
    assert (selection.rank[held_out] >= table.num_candidates).all()


@given(table=tables(), case=st.sampled_from(EVERY_CASE))
def test_without_a_quota_one_outcome_has_one_reason_of_a_few_words(table, case):
    strategy, rule = case
    selection = table.select(strategy, **rule)
    yes = set(selection.reason[selection.selected])
    no = set(selection.reason[table.candidates & ~selection.selected])
    assert len(yes) <= 1
    assert len(no) <= 1
    assert not yes & no
    assert all(len(words.split()) <= 4 for words in yes | no)


@given(table=tables(), case=st.sampled_from(EVERY_CASE), seed=SEEDS)
def test_scores_of_held_out_rows_are_not_read(table, case, seed):
    strategy, rule = case
    blank = {
        name: np.where(table.candidates, getattr(table, name), np.nan)
        for name in ("scores", "errors", "flags")
    }
    there = replace(table, **blank).select(strategy, seed=seed, **rule)
    assert (there.rank == table.select(strategy, seed=seed, **rule).rank).all()


@given(
    table=tables(),
    strategy=st.sampled_from(["influence", "param-change", "el2n"]),
    fraction=FRACTIONS,
    seed=SEEDS,
)
def test_rank_follows_the_score_and_only_ties_follow_the_seed(table, strategy, fraction, seed):
    selection = table.select(strategy, fraction=fraction, seed=seed)
    by_rank = np.argsort(selection.rank)[: table.num_candidates]
    assert (np.diff(table.scores[by_rank]) <= 0).all()
    other = table.select(strategy, fraction=fraction, seed=seed + 1)
    if len(np.unique(table.scores)) == len(table.scores):
        assert (other.rank == selection.rank).all()


@given(table=tables(), strategy=st.sampled_from(FLAGS), fraction=FRACTIONS, seed=SEEDS)
def test_flagged_rows_come_first_and_the_others_fill_a_fraction(table, strategy, fraction, seed):
    kept = table.select(strategy, fraction=fraction, seed=seed).selected
    flagged = table.candidates & (table.flags == 1)
    assert (kept & flagged).sum() == min(flagged.sum(), kept.sum())
    every = table.select(strategy, fraction=1.0, seed=seed)
    assert (np.sort(every.rank[flagged]) == np.arange(flagged.sum())).all()


@pytest.mark.parametrize(
    "strategy", ["influence", "param-change", "el2n", "class-balanced", *FLAGS]
)
def test_ties_are_drawn_by_the_seed_and_repeat_with_it(strategy):
    first, again, other = (
        select_samples(strategy, one_class(np.zeros(1000)), rule=Rule(fraction=0.5), seed=seed)
        for seed in (1, 1, 2)
    )
    assert (first.rank == again.rank).all()
    assert 150 < (first.selected & other.selected).sum() < 350
    assert 150 < first.selected[:500].sum() < 350


@given(table=tables(), quota=st.sampled_from([0.0, 0.3]), strategy=BY_SCORE)
def test_permuting_the_rows_permutes_the_selection(table, quota, strategy):
    assume(len(np.unique(table.scores)) == len(table.scores))
    order = np.random.default_rng(0).permutation(len(table.labels))
    rules = [{"fraction": 0.4}]
    if strategy in ("influence", "el2n"):
        rules.append({"threshold": 0.1})
    if strategy == "influence":
        rules.append({"num_errors": 2.0})
    for rule in rules:
        here = table.select(strategy, class_quota=quota, **rule)
        there = table.taken(order).select(strategy, class_quota=quota, **rule)
        assert (there.selected == here.selected[order]).all()
        assert (there.reason == here.reason[order]).all()
        inside = table.candidates[order]
        assert (there.rank == here.rank[order])[inside].all()


def test_holding_rows_out_does_not_reorder_a_random_draw():
    everyone = one_class(num_samples=200)
    candidates = np.arange(200) % 3 > 0
    full, rest = (
        select_samples("random", samples, rule=Rule(fraction=1.0), seed=5).rank[candidates]
        for samples in (everyone, replace(everyone, candidates=candidates))
    )
    assert (np.argsort(full) == np.argsort(rest)).all()


@pytest.mark.parametrize(("fraction", "quota", "per_class"), [(0.1, 1.0, 450), (0.8, 1.0, 3600)])
def test_a_quota_of_1_draws_equal_classes_alike(fraction, quota, per_class):
    labels = np.arange(45_000) % 10
    samples = SelectionCandidates(labels=labels, candidates=np.ones(45_000, dtype=bool))
    rule = Rule(fraction=fraction, class_quota=quota)
    selected = select_samples("random", samples, rule=rule, seed=0).selected
    assert np.bincount(labels[selected]).tolist() == [per_class] * 10


def test_quotas_are_not_rounded_up_by_floating_point():
    # 0.14 * 100 * 100 / 200 comes out a hair above 7.
    labels = np.repeat([0, 1], 100)
    scores = np.where(labels == 0, -1.0, 1.0)
    samples = SelectionCandidates(labels=labels, candidates=np.ones(200, dtype=bool), scores=scores)
    rule = Rule(fraction=0.5, class_quota=0.14)
    selected = select_samples("influence", samples, rule=rule, seed=0).selected
    assert np.bincount(labels[selected]).tolist() == [7, 93]


@given(table=tables(), quota=st.sampled_from([0.0, 1.0]), seed=SEEDS)
def test_class_balanced_keeps_every_class_within_one_row_of_its_share_at_every_count(
    table, quota, seed
):
    n, sizes = table.num_candidates, class_sizes(table, table.candidates)
    assume(n > 0)
    for count in range(1, n + 1):
        fraction = count / n
        kept = table.select("class-balanced", fraction=fraction, class_quota=quota, seed=seed)
        shares = [Fraction(count * int(size), n) for size in sizes]
        counts = class_sizes(table, kept.selected)
        assert counts.sum() == count
        assert (counts >= [math.floor(share) for share in shares]).all()
        assert (counts <= [math.ceil(share) for share in shares]).all()


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    seed=SEEDS,
)
def test_class_balanced_shares_hold_for_many_classes_of_any_size(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    scores = np.random.default_rng(seed + 1).normal(size=len(labels))
    samples = SelectionCandidates(
        labels=labels, candidates=np.ones(len(labels), dtype=bool), scores=scores
    )
    rank = select_samples("class-balanced", samples, rule=Rule(fraction=1.0), seed=0).rank
    counts = np.cumsum(np.eye(len(sizes), dtype=int)[labels[np.argsort(rank)]], axis=0)
    products = np.arange(1, len(labels) + 1)[:, None] * np.array(sizes)
    assert (counts >= products // len(labels)).all()
    assert (counts <= -(-products // len(labels))).all()
    for label in range(len(sizes)):
        in_class = labels == label
        assert (np.argsort(rank[in_class]) == np.argsort(-scores[in_class])).all()


@looped("shape", [(0.5, 4.0), (0.2, 3.0), (0.9, 0.7), (0.5, 2.0), (0.7, 1e6)])
def test_the_beta_density_is_scipy_s(shape):
    mean, concentration = shape
    percentiles = (np.arange(1000) + 0.5) / 1000
    found = beta_log_density(percentiles, mean=mean, concentration=concentration)
    expected = scipy.stats.beta.logpdf(
        percentiles, mean * concentration, (1 - mean) * concentration
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta", [(0.5, 4.0), (0.2, 6.0), (0.7, 1.5)])
def test_beta_draws_the_first_row_with_chances_in_proportion_to_the_density(beta):
    """20,000 draws of one row of 10, against the density at the mid-rank percentiles."""
    num_samples, num_draws = 10, 20_000
    scores = np.random.default_rng(0).permutation(num_samples).astype(float)
    drawn = np.zeros(num_samples, dtype=int)
    for seed in range(num_draws):
        samples = one_class(scores, num_samples=num_samples)
        rule = Rule(fraction=0.1, beta=beta)
        drawn += select_samples("beta", samples, rule=rule, seed=seed).selected
    mean, concentration = beta
    weights = scipy.stats.beta.pdf(
        (scores + 0.5) / num_samples, mean * concentration, (1 - mean) * concentration
    )
    expected = num_draws * weights / weights.sum()
    assert scipy.stats.chisquare(drawn, expected).pvalue > 1e-3


def test_beta_draws_without_replacement_in_succession():
    """Pairs of 4 rows, against the chances of two successive draws."""
    weights = scipy.stats.beta.pdf((np.arange(4) + 0.5) / 4, 1.2, 2.8)
    weights = weights / weights.sum()
    pairs = {(i, j): 0 for i in range(4) for j in range(4) if i != j}
    for seed in range(20_000):
        samples, rule = one_class(np.arange(4.0), num_samples=4), Rule(fraction=1.0, beta=(0.3, 4))
        first, second, *_ = np.argsort(select_samples("beta", samples, rule=rule, seed=seed).rank)
        pairs[first, second] += 1
    expected = [20_000 * weights[i] * weights[j] / (1 - weights[i]) for i, j in pairs]
    assert scipy.stats.chisquare(list(pairs.values()), expected).pvalue > 1e-3


def test_a_concentrated_beta_keeps_the_rows_around_its_percentile():
    scores = np.random.default_rng(0).permutation(1000).astype(float)
    rule = Rule(fraction=0.2, beta=(0.7, 1e5))
    selected = select_samples("beta", one_class(scores), rule=rule, seed=0).selected
    assert np.abs(scores[selected] - 700).max() <= 110


@given(table=tables(), seed=SEEDS)
def test_a_flat_beta_draws_by_position_for_all_scores(table, seed):
    here, there = (
        rows.select("beta", fraction=1.0, beta=(0.5, 2.0), seed=seed)
        for rows in (table, replace(table, scores=-table.scores))
    )
    assert (here.rank == there.rank).all()


@pytest.mark.parametrize("strategy", ["random", "beta"])
def test_draws_repeat_with_their_seed_and_spread_evenly_over_positions(strategy):
    scores = None if strategy == "random" else np.random.default_rng(0).normal(size=1000)
    rule = Rule(fraction=0.5, beta=None if strategy == "random" else (0.5, 2.0))
    first, again, other = (
        select_samples(strategy, one_class(scores), rule=rule, seed=seed) for seed in (3, 3, 4)
    )
    assert (first.rank == again.rank).all()
    assert 200 < (first.selected & other.selected).sum() < 300
    assert 200 < first.selected[:500].sum() < 300


def test_all_and_none_are_what_they_say():
    samples = SelectionCandidates(
        labels=np.array([0, 1, 1]), candidates=np.array([True, False, True])
    )
    everything, nothing = (
        select_samples(strategy, samples, rule=Rule(), seed=0) for strategy in ("all", "none")
    )
    assert everything.selected.tolist() == [True, False, True]
    assert nothing.reason.tolist() == ["none", "held out", "none"]


def test_errors_and_thresholds_are_counted_from_the_score_s_side():
    samples = replace(one_class(np.array([0.1, 0.5, -0.2]), num_samples=3), errors=np.full(3, 0.2))
    doubted = select_samples("influence", samples, rule=Rule(num_errors=1.0), seed=0)
    assert doubted.selected.tolist() == [False, True, False]
    assert doubted.reason.tolist() == ["lower bound <= 0", "lower bound > 0", "lower bound <= 0"]
    easy = one_class(-np.array([0.1, 0.5, 0.3]), num_samples=3)
    kept = select_samples("el2n", easy, rule=Rule(threshold=0.3), seed=0)
    assert kept.reason.tolist() == ["el2n < 0.3", "el2n >= 0.3", "el2n >= 0.3"]
    assert kept.rank.tolist() == [0, 2, 1]


@looped(
    "strategy, rule, message",
    [
        ("all", {"fraction": 0.5}, "fraction has no effect"),
        ("none", {"fraction": 0.5}, "fraction has no effect"),
        ("correct", {"threshold": 0.5}, "threshold has no effect"),
        ("class-balanced", {"num_errors": 1.0, "fraction": 0.5}, "rrors has no effect"),
        ("influence", {"beta": (0.5, 4.0)}, "beta has no effect"),
        ("influence", {"fraction": 0.5, "threshold": 0.0}, "fraction excludes threshold"),
        ("influence", {"fraction": 0.5, "num_errors": 1.0}, "fraction excludes threshold"),
        ("influence", {"threshold": float("nan")}, r"threshold .*finite"),
        ("influence", {"num_errors": float("inf")}, "num_errors must be finite"),
        ("random", {}, "needs fraction"),
        ("beta", {}, "needs fraction"),
        ("param-change", {}, "needs fraction"),
        ("class-balanced", {}, "needs fraction"),
        ("el2n", {}, "needs fraction or threshold"),
        ("beta", {"fraction": 0.5, "beta": None}, "needs beta"),
        ("beta", {"fraction": 0.5, "beta": (1.0, 4.0)}, r"beta must be a mean in \(0, 1\)"),
        ("beta", {"fraction": 0.5, "beta": (0.5, 0.0)}, "positive concentration"),
        ("random", {"fraction": 0.0}, r"fraction must be in \(0, 1\]"),
        ("random", {"fraction": 1.5}, r"fraction must be in \(0, 1\]"),
        ("random", {"fraction": float("nan")}, r"fraction must be in \(0, 1\]"),
        ("random", {"fraction": 0.5, "class_quota": 1.1}, r"class_quota must be in \[0, 1\]"),
        ("random", {"fraction": 0.1, "class_quota": 1.0}, r"class_quota .*fraction"),
        ("guess", {}, "is unknown"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_rejected(strategy, rule, message):
    table = Table(
        labels=np.array([0, 1, 2, 0, 1, 2, 0, 0, 0, 0]),
        candidates=np.ones(10, dtype=bool),
        scores=np.arange(10.0),
        errors=np.ones(10),
        flags=np.ones(10),
    )
    with pytest.raises(ValueError, match=message):
        table.select(strategy, **rule)


@looped(
    "strategy, inputs, message",
    [
        ("influence", {}, "needs scores"),
        ("influence", {"scores": np.array([0.0, np.nan])}, r"scores .*1 NaN"),
        ("influence", {"scores": np.zeros(3)}, "one value per sample"),
        ("influence", {"candidates": np.ones(3, dtype=bool)}, "needs scores"),
        ("influence", {"scores": np.zeros(2), "errors": np.zeros(2)}, "got no num_errors"),
        ("el2n", {"scores": np.zeros(2), "errors": np.zeros(2)}, "errors has no effect"),
        ("correct", {"scores": np.array([0.0, 2.0])}, "must be 0 or 1"),
        ("all", {"scores": np.zeros(2)}, "scores has no effect"),
        ("all", {"candidates": np.ones(3, dtype=bool)}, "one value per sample"),
    ],
)
def test_missing_or_unread_inputs_nan_and_other_shapes_are_rejected(strategy, inputs, message):
    settings = {"labels": np.array([0, 1]), "candidates": np.ones(2, dtype=bool)} | inputs
    with pytest.raises(ValueError, match=message):
        select_samples(strategy, SelectionCandidates(**settings), rule=Rule(), seed=0)


def test_errors_that_are_missing_or_nan_are_rejected():
    samples, rule = one_class(np.zeros(2), num_samples=2), Rule(num_errors=1.0)
    with pytest.raises(ValueError, match="got no errors"):
        select_samples("influence", samples, rule=rule, seed=0)
    broken = replace(samples, errors=np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"errors .*1 NaN"):
        select_samples("influence", broken, rule=rule, seed=0)
