"""Folds: equal parts of every class, the same in any order, equal images together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pipeline.methods.folds import stratified_folds, stratified_parts
from pipeline.provenance import pixel_key


def some(seed: int, *, sizes: list[int], num_images: int | None = None):
    """Labels of these class sizes in any order, and keys; few images mean many equal ones."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = rng.integers(0, 256, (num_images or len(labels), 16), dtype=np.uint8)
    drawn = rng.integers(0, len(images), len(labels))
    return labels, images if num_images is None else images[drawn]


def counts_of(parts, labels, num_parts: int) -> np.ndarray:
    """Samples of each class in each part."""
    table = np.zeros((labels.max() + 1, num_parts), dtype=int)
    np.add.at(table, (labels, parts), 1)
    return table


SIZES = st.lists(st.integers(0, 17), min_size=1, max_size=6).filter(any)
SEEDS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS, sizes=SIZES, num_images=st.none() | st.integers(1, 30), data=st.data())
def test_parts_are_equal_over_all_and_over_every_class(seed, sizes, num_images, data):
    labels, keys = some(seed, sizes=sizes, num_images=num_images)
    num_parts = data.draw(st.integers(1, min(7, len(labels))))
    parts = stratified_parts(labels, keys, num_parts=num_parts, seed=seed)
    assert parts.dtype == np.int64
    table = counts_of(parts, labels, num_parts)
    assert np.ptp(table, axis=1).max() <= 1
    assert np.ptp(table.sum(axis=0)) <= 1


@given(seed=SEEDS, num_parts=st.integers(2, 6))
def test_the_order_of_the_samples_decides_nothing(seed, num_parts):
    labels, keys = some(seed, sizes=[9, 2, 30, 7])
    turned = np.random.default_rng(seed).permutation(len(labels))
    parts = stratified_folds(labels, keys, num_folds=num_parts, seed=3)
    again = stratified_folds(labels[turned], keys[turned], num_folds=num_parts, seed=3)
    assert np.array_equal(again, parts[turned])


@given(seed=SEEDS)
def test_the_order_decides_nothing_among_equal_images_that_fit(seed):
    labels, keys = some(seed, sizes=[40, 40])
    keys[:5] = keys[5:10]
    labels[:5] = labels[5:10]
    turned = np.random.default_rng(seed).permutation(len(labels))
    parts = stratified_folds(labels, keys, num_folds=4, seed=3)
    assert np.array_equal(parts[:5], parts[5:10])
    again = stratified_folds(labels[turned], keys[turned], num_folds=4, seed=3)
    assert np.array_equal(again, parts[turned])


@given(seed=SEEDS)
def test_equal_images_are_in_one_fold_even_with_other_labels(seed):
    """Up to 4 copies each of 12 images in two classes of 100: all fit."""
    labels, keys = some(seed, sizes=[100, 100])
    rows = np.random.default_rng(seed).permutation(200)[:48].reshape(12, 4)
    keys[rows] = keys[rows[:, :1]]
    parts = stratified_folds(labels, keys, num_folds=5, seed=1)
    assert (parts[rows] == parts[rows[:, :1]]).all()
    assert len(np.unique(parts[rows[:, 0]])) > 1


def test_equal_images_are_separated_only_if_the_counts_require_it():
    labels = np.zeros(10, dtype=np.int64)
    keys = np.zeros((10, 16), dtype=np.uint8)
    parts = stratified_folds(labels, keys, num_folds=5, seed=0)
    assert np.bincount(parts).tolist() == [2] * 5


@pytest.mark.parametrize("where", range(16))
def test_every_byte_of_the_key_and_the_seed_count(where):
    labels, keys = some(0, sizes=[300])
    parts = stratified_folds(labels, keys, num_folds=5, seed=0)
    changed = keys.copy()
    changed[:, where] ^= 1
    for other in (
        stratified_folds(labels, changed, num_folds=5, seed=0),
        stratified_folds(labels, keys, num_folds=5, seed=where + 1),
    ):
        # Parts drawn anew agree on a fifth: 60 of 300, and 100 is more than five deviations off.
        assert (other == parts).sum() < 100


def test_parts_are_the_same_on_every_machine_and_in_every_version():
    """Stored labels depend on them, so another draw must be another format version."""
    digits = load_digits()
    drawn = [pixel_key(image.astype(np.uint8)) for image in digits.images]
    keys = np.frombuffer(b"".join(drawn), dtype=np.uint8).reshape(-1, 16)
    parts = stratified_folds(digits.target.astype(np.int64), keys, num_folds=5, seed=0)
    assert parts[:24].tolist() == [
        1,
        2,
        3,
        2,
        2,
        4,
        2,
        2,
        0,
        1,
        4,
        0,
        2,
        1,
        2,
        3,
        4,
        1,
        4,
        3,
        4,
        2,
        0,
        1,
    ]
    assert np.bincount(parts).tolist() == [360, 360, 359, 359, 359]


def test_a_class_with_a_single_sample_is_named():
    labels, keys = some(0, sizes=[4, 5, 0, 1, 6])
    with pytest.raises(ValueError, match=r"^class 3 .*at least 2"):
        stratified_folds(labels, keys, num_folds=2, seed=0)
    assert len(stratified_parts(labels, keys, num_parts=2, seed=0)) == 16


@pytest.mark.parametrize(
    ("num_folds", "message"), [(1, "num_folds must be at least 2"), (5, r"must be in \[1, 4\]")]
)
def test_a_count_of_folds_that_cannot_be_is_rejected(num_folds, message):
    labels, keys = some(0, sizes=[2, 2])
    with pytest.raises(ValueError, match=message):
        stratified_folds(labels, keys, num_folds=num_folds, seed=0)
