from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.methods.data_selection import (
    select_influence,
    select_random,
    select_samples,
)

SEEDS = st.integers(0, 2**31)
FRACTIONS = st.floats(0.0, 1.0)
QUOTAS = st.sampled_from([0.0, 0.3, 0.5, 0.9])
RANKED = st.sampled_from(["influence", "random"])
EVERY_CASE = [
    ("influence", None),
    ("influence", 0.4),
    ("correct", None),
    ("random", 0.4),
    ("all", None),
    ("none", None),
]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a selection reads; classes are of unequal size, some scores tie."""

    labels: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    teacher_correct: np.ndarray

    @property
    def num_candidates(self):
        return int(self.candidates.sum())

    def select(self, strategy, *, seed=0, **settings):
        if strategy == "influence":
            settings["scores"] = self.scores
        if strategy == "correct":
            settings["teacher_correct"] = self.teacher_correct
        return select_samples(
            strategy, labels=self.labels, candidates=self.candidates, seed=seed, **settings
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
        teacher_correct=rng.random(num_samples) < 0.8,
    )


def class_sizes(table, rows):
    return np.bincount(table.labels[rows], minlength=table.labels.max() + 1)


def required(table, num_kept, quota):
    """ceil(q * kept_share * n_class) of every class, in exact integers over 1000."""
    per_mille = round(quota * 1000)
    sizes = class_sizes(table, table.candidates)
    return np.array([-(-per_mille * num_kept * n // (1000 * table.num_candidates)) for n in sizes])


@given(table=tables(), strategy=RANKED, fraction=FRACTIONS, quota=QUOTAS, seed=SEEDS)
def test_a_fraction_keeps_its_count_exactly_and_every_quota(table, strategy, fraction, quota, seed):
    count = round(fraction * table.num_candidates)
    quotas = required(table, count, quota)
    assume(quotas.sum() <= count)
    kept = table.select(strategy, fraction=fraction, class_quota=quota, seed=seed).selected
    assert kept.sum() == count
    assert (class_sizes(table, kept) >= quotas).all()


@given(
    table=tables(),
    strategy=st.sampled_from(["influence", "correct"]),
    quota=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_threshold_keeps_its_rows_and_adds_only_what_a_quota_misses(table, strategy, quota):
    passed = table.scores > 0 if strategy == "influence" else table.teacher_correct
    passed = passed & table.candidates
    selection = table.select(strategy, class_quota=quota)
    assert selection.selected[passed].all()
    wanted = np.maximum(class_sizes(table, passed), required(table, int(passed.sum()), quota))
    assert (class_sizes(table, selection.selected) == wanted).all()
    added = selection.selected & ~passed
    assert (selection.reason[added] == "class quota").all()


@given(table=tables(), strategy=RANKED, small=FRACTIONS, large=FRACTIONS, seed=SEEDS)
def test_without_a_quota_a_smaller_fraction_lies_inside_a_larger_one(
    table, strategy, small, large, seed
):
    small, large = sorted([small, large])
    inner = table.select(strategy, fraction=small, seed=seed).selected
    outer = table.select(strategy, fraction=large, seed=seed).selected
    assert not (inner & ~outer).any()


@given(table=tables(), strategy=RANKED, fractions=st.tuples(FRACTIONS, FRACTIONS), quota=QUOTAS)
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


@given(table=tables(), strategy=RANKED, fraction=FRACTIONS, quota=QUOTAS)
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
    strategy, fraction = case
    selection = table.select(strategy, fraction=fraction, class_quota=quota)
    held_out = ~table.candidates
    assert not selection.selected[held_out].any()
    assert ((selection.reason == "held out") == held_out).all()
    assert (np.sort(selection.rank) == np.arange(len(table.labels))).all()
    assert (selection.rank[held_out] >= table.num_candidates).all()


@given(table=tables(), fraction=FRACTIONS, seed=SEEDS)
def test_rank_follows_the_score_and_only_ties_follow_the_seed(table, fraction, seed):
    selection = table.select("influence", fraction=fraction, seed=seed)
    by_rank = np.argsort(selection.rank)[: table.num_candidates]
    assert (np.diff(table.scores[by_rank]) <= 0).all()
    other = table.select("influence", fraction=fraction, seed=seed + 1)
    untied = np.unique(table.scores, return_counts=True)
    if (untied[1] == 1).all():
        assert (other.rank == selection.rank).all()


def test_ties_are_drawn_by_the_seed_and_repeat_with_it():
    settings = {
        "labels": np.zeros(1000, dtype=np.int64),
        "candidates": np.ones(1000, dtype=bool),
        "fraction": 0.5,
        "class_quota": 0.0,
    }
    first, again, other = (
        select_influence(np.zeros(1000), seed=seed, **settings).selected for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert 150 < (first & other).sum() < 350
    assert 150 < first[:500].sum() < 350


@given(table=tables(), quota=st.sampled_from([0.0, 0.3]), case=st.sampled_from(EVERY_CASE[:2]))
def test_permuting_the_rows_permutes_the_selection(table, quota, case):
    _, fraction = case
    assume(len(np.unique(table.scores)) == len(table.scores))
    order = np.random.default_rng(0).permutation(len(table.labels))
    moved = Table(
        labels=table.labels[order],
        candidates=table.candidates[order],
        scores=table.scores[order],
        teacher_correct=table.teacher_correct[order],
    )
    here = table.select("influence", fraction=fraction, class_quota=quota)
    there = moved.select("influence", fraction=fraction, class_quota=quota)
    assert (there.selected == here.selected[order]).all()
    assert (there.reason == here.reason[order]).all()


def test_holding_rows_out_does_not_reorder_a_random_draw():
    labels, everyone = np.zeros(200, dtype=np.int64), np.ones(200, dtype=bool)
    some = everyone.copy()
    some[::3] = False
    settings = {"labels": labels, "fraction": 1.0, "class_quota": 0.0, "seed": 5}
    full = select_random(candidates=everyone, **settings).rank
    rest = select_random(candidates=some, **settings).rank
    assert (np.argsort(full[some]) == np.argsort(rest[some])).all()


@pytest.mark.parametrize(("fraction", "quota", "per_class"), [(0.1, 1.0, 450), (0.8, 1.0, 3600)])
def test_a_quota_of_1_draws_equal_classes_alike(fraction, quota, per_class):
    labels, candidates = np.arange(45_000) % 10, np.ones(45_000, dtype=bool)
    selection = select_random(
        labels=labels, candidates=candidates, fraction=fraction, class_quota=quota, seed=0
    )
    assert np.bincount(labels[selection.selected]).tolist() == [per_class] * 10


def test_quotas_are_not_rounded_up_by_floating_point():
    # 0.14 * 100 * 100 / 200 comes out a hair above 7.
    labels = np.repeat([0, 1], 100)
    scores = np.where(labels == 0, -1.0, 1.0)
    selection = select_influence(
        scores,
        labels=labels,
        candidates=np.ones(200, dtype=bool),
        fraction=0.5,
        class_quota=0.14,
        seed=0,
    )
    assert np.bincount(labels[selection.selected]).tolist() == [7, 93]


def test_all_and_none_are_what_they_say():
    labels, candidates = np.array([0, 1, 1]), np.array([True, False, True])
    settings = {"labels": labels, "candidates": candidates, "seed": 0}
    assert select_samples("all", **settings).selected.tolist() == [True, False, True]
    assert select_samples("none", **settings).reason.tolist() == ["none", "held out", "none"]


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        ("correct", {"fraction": 0.5}, "fraction has no effect"),
        ("all", {"fraction": 0.5}, "fraction has no effect"),
        ("none", {"fraction": 0.5}, "fraction has no effect"),
        ("random", {}, "needs fraction"),
        ("random", {"fraction": 1.5}, r"fraction must be in \[0, 1\]"),
        ("random", {"fraction": float("nan")}, r"fraction must be in \[0, 1\]"),
        ("random", {"fraction": 0.5, "class_quota": 1.1}, r"class_quota must be in \[0, 1\]"),
        ("random", {"fraction": 0.1, "class_quota": 1.0}, "Lower class_quota or raise fraction"),
        ("guess", {}, "is unknown"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(strategy, settings, message):
    table = Table(
        labels=np.array([0, 1, 2, 0, 1, 2, 0, 0, 0, 0]),
        candidates=np.ones(10, dtype=bool),
        scores=np.arange(10.0),
        teacher_correct=np.ones(10, dtype=bool),
    )
    with pytest.raises(ValueError, match=message):
        table.select(strategy, **settings)


def test_missing_inputs_nan_scores_and_other_shapes_are_refused():
    settings = {"labels": np.array([0, 1]), "candidates": np.ones(2, dtype=bool), "seed": 0}
    with pytest.raises(ValueError, match="needs scores"):
        select_samples("influence", **settings)
    with pytest.raises(ValueError, match="got 1 NaN"):
        select_samples("influence", scores=np.array([0.0, np.nan]), **settings)
    with pytest.raises(ValueError, match="one value per sample"):
        select_samples("influence", scores=np.zeros(3), **settings)
