"""Means, spreads and paired differences, against scipy and by hand."""

import math
import random
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pipeline.methods.paired_differences import Difference, paired_difference, spread

ACCURACY = st.floats(0.0, 1.0)
BY_SEED = st.dictionaries(st.integers(0, 20), ACCURACY, max_size=8)


def test_by_hand():
    """Differences 1, 2, 3: mean 2, std 1, half width 4.302653 / sqrt(3)."""
    found = paired_difference({0: 11.0, 1: 12.0, 2: 13.0, 7: 99.0}, {0: 10.0, 1: 10.0, 2: 10.0})
    assert (found.num, found.mean) == (3, 2.0)
    assert found.low == pytest.approx(2.0 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2.0 + 4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize(
    ("num", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (30, 2.045)]
)
def test_the_half_width_is_the_quantile_of_the_textbooks(num, quantile):
    """Two-sided 95 %, in standard errors."""
    values = dict(enumerate(range(num)))
    found = paired_difference(values, dict.fromkeys(values, 0.0))
    error = statistics.stdev(values.values()) / math.sqrt(num)
    assert round((found.high - found.mean) / error, 3) == quantile
    assert round((found.mean - found.low) / error, 3) == quantile


def test_the_sign_is_point_minus_baseline():
    better, worse = {0: 0.9, 1: 0.92}, {0: 0.5, 1: 0.51}
    assert paired_difference(better, worse).mean == pytest.approx(0.405)
    assert paired_difference(worse, better).mean == pytest.approx(-0.405)


@given(st.lists(st.tuples(ACCURACY, ACCURACY), min_size=2, max_size=12))
def test_the_interval_is_that_of_scipy_s_paired_test(pairs):
    values, baseline = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = paired_difference(values, baseline)
    differences = np.array([a - b for a, b in pairs])
    if np.ptp(differences) < 1e-9:  # scipy warns of a variance that is nearly 0
        assert found.low == pytest.approx(found.high, abs=1e-8)
        return
    expected = scipy.stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert found.mean == pytest.approx(float(differences.mean()), abs=1e-12)
    assert found.low == pytest.approx(expected.low, rel=1e-9, abs=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-9, abs=1e-9)


@given(st.lists(ACCURACY, min_size=2, max_size=12))
def test_mean_and_std_are_numpy_s(values):
    found = spread(values)
    assert found.num == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


@given(BY_SEED, BY_SEED, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_bit(values, baseline, order):
    def shuffled(rows: dict[int, float]) -> dict[int, float]:
        items = list(rows.items())
        order.shuffle(items)
        return dict(items)

    assert paired_difference(shuffled(values), shuffled(baseline)) == paired_difference(
        values, baseline
    )
    assert spread(shuffled(values).values()) == spread(values.values())


@given(BY_SEED, BY_SEED, st.floats(-1.0, 1.0))
def test_what_both_gain_does_not_show(values, baseline, constant):
    found = paired_difference(values, baseline)
    shifted = paired_difference(
        {seed: value + constant for seed, value in values.items()},
        {seed: value + constant for seed, value in baseline.items()},
    )
    assert shifted.num == found.num
    for one, other in ((shifted.mean, found.mean), (shifted.low, found.low)):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-12)


@given(BY_SEED, BY_SEED)
def test_the_interval_has_the_mean_in_its_middle_and_turns_with_the_sign(values, baseline):
    found, turned = paired_difference(values, baseline), paired_difference(baseline, values)
    assert found.num == turned.num == len(values.keys() & baseline.keys())
    if found.num == 0:
        assert found == turned == Difference(num=0, mean=None, low=None, high=None)
        return
    assert turned.mean == -found.mean
    assert (found.low is None) == (found.num < 2)
    if found.low is not None:
        assert found.low <= found.mean <= found.high
        assert (turned.low, turned.high) == (-found.high, -found.low)


def test_one_common_seed_has_a_difference_and_no_interval():
    found = paired_difference({0: 0.75, 1: 0.5}, {0: 0.5, 2: 0.5})
    assert found == Difference(num=1, mean=0.25, low=None, high=None)
    assert spread([0.5]).std is None
    assert (spread([]).num, spread([]).mean, spread([]).std) == (0, None, None)


def test_differences_that_are_all_equal_have_an_interval_without_width():
    found = paired_difference({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert found == Difference(num=2, mean=0.25, low=0.25, high=0.25)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_rejected(wrong):
    with pytest.raises(ValueError, match="values must be finite"):
        spread([0.5, wrong])
    with pytest.raises(ValueError, match="values must be finite"):
        paired_difference({0: wrong}, {0: 0.5})


@pytest.mark.parametrize("num", [2, 3, 5])
def test_the_interval_covers_as_often_as_it_promises(num):
    """3,000 times: three standard errors of a share of 0.95 are 0.012."""
    draw = random.Random(num)
    covered = 0
    for _ in range(3000):
        common = [draw.gauss(0.9, 0.3) for _ in range(num)]  # what the seed does to both
        values = {seed: common[seed] + 0.01 + draw.gauss(0, 0.02) for seed in range(num)}
        baseline = {seed: common[seed] + draw.gauss(0, 0.02) for seed in range(num)}
        found = paired_difference(values, baseline)
        covered += found.low <= 0.01 <= found.high
    assert covered / 3000 == pytest.approx(0.95, abs=0.012)
