"""Label issues: exactly cleanlab's, on random and on real rows, whole or part by part."""

import numpy as np
import pytest
import torch
from cleanlab.count import get_confident_thresholds
from cleanlab.filter import find_label_issues
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from pipeline.methods import label_issues as module
from pipeline.methods.label_issues import confident_thresholds, label_issues


def random_rows(seed: int, *, num_classes: int, sharpness: float, coarse: bool):
    """Rows and labels that often but not always agree; coarse ones have ties."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, sharpness), 200)
    if coarse:
        probs = np.round(8 * probs) / 8
    labels = np.where(rng.random(200) < 0.6, probs.argmax(axis=1), rng.integers(0, 2, 200))
    return probs, labels.astype(np.int64)


@pytest.fixture(scope="module")
def digits_rows():
    """Out-of-sample rows of real digits of which every tenth has a wrong label."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(labels), len(labels) // 10, replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    model = LogisticRegression(C=1.0, max_iter=2000)
    probs = cross_val_predict(model, images / 16, labels, cv=5, method="predict_proba")
    return probs, labels.astype(np.int64), flipped


def assert_as_cleanlab(probs, labels):
    ours = torch.from_numpy(probs), torch.from_numpy(labels)
    theirs = find_label_issues(labels, probs, filter_by="confident_learning", n_jobs=1)
    assert np.array_equal(label_issues(*ours).numpy(), theirs)
    return theirs


@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(2, 9),
    sharpness=st.sampled_from([0.05, 0.3, 1.0, 5.0]),
    coarse=st.booleans(),
)
def test_issues_are_those_of_cleanlab(seed, num_classes, sharpness, coarse):
    assert_as_cleanlab(
        *random_rows(seed, num_classes=num_classes, sharpness=sharpness, coarse=coarse)
    )


def test_issues_of_real_digits_are_those_of_cleanlab_and_mostly_the_flipped(digits_rows):
    probs, labels, flipped = digits_rows
    issues = assert_as_cleanlab(probs, labels)
    is_flipped = np.isin(np.arange(len(labels)), flipped)
    assert issues[is_flipped].mean() > 0.7
    assert is_flipped[issues].mean() > 0.7


def test_thresholds_are_those_of_cleanlab(digits_rows):
    probs, labels, _ = digits_rows
    own = torch.from_numpy(probs[np.arange(len(labels)), labels])
    ours = confident_thresholds(own, torch.from_numpy(labels), num_classes=10)
    np.testing.assert_allclose(ours, get_confident_thresholds(labels, probs), rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([0.5, 0.5, 0.0], 1),  # a tie with the label
        ([0.5, 0.5 - 5e-7, 0.0], 1),  # and all but one
        ([0.5, 0.5 - 2e-6, 0.0], 1),
        ([0.3 + 5e-7, 0.7 - 5e-7, 0.0], 0),  # all but the threshold of class 1
        ([0.3 + 2e-6, 0.7 - 2e-6, 0.0], 0),
        ([0.34, 0.33, 0.33], 2),
        ([0.0, 0.0, 1.0], 0),
        ([0.2, 0.45, 0.35], 2),  # the top is not confident, two others are
    ],
)
def test_ties_and_margins_are_those_of_cleanlab(row, label):
    usual = [[0.2, 0.7, 0.1], [0.1, 0.7, 0.2], [0.3, 0.4, 0.3], [0.6, 0.2, 0.2], [0.1, 0.6, 0.3]]
    assert_as_cleanlab(np.array([*usual, row]), np.array([1, 1, 2, 0, 0, label]))


def test_a_class_without_samples_is_never_the_guess():
    probs = torch.tensor(
        [[0.02, 0.03, 0.95], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64
    )
    labels = torch.tensor([0, 0, 1])
    assert_as_cleanlab(probs.numpy(), labels.numpy())


def test_rows_may_come_in_parts(digits_rows, monkeypatch):
    probs, labels = (torch.from_numpy(rows) for rows in digits_rows[:2])
    whole = label_issues(probs, labels)
    own = probs.gather(1, labels[:, None]).squeeze(1)
    thresholds = confident_thresholds(own, labels, num_classes=10)
    parts = [
        label_issues(rows, own, thresholds=thresholds)
        for rows, own in zip(probs.split(100), labels.split(100), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)
    monkeypatch.setattr(module, "_ROWS", 7)
    assert torch.equal(label_issues(probs, labels), whole)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([[0.5, 0.5]], [2], r"labels must be in \[0, 2\), got 2 to 2"),
        ([[0.5, 0.5]], [-1], r"labels must be in \[0, 2\)"),
        ([[0.5, 0.5]], [0, 1], r"labels must be \(1,\), got \(2,\)"),
        ([[float("nan"), 0.5]], [0], "probabilities must be finite"),
    ],
)
def test_what_cannot_be_is_rejected(probs, labels, message):
    with pytest.raises(ValueError, match=message):
        label_issues(torch.tensor(probs), torch.tensor(labels))
