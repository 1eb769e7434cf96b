"""Cross-fitted heads: scikit-learn's on every fold, and no head knows the rows that it predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from pipeline.influence.cross_fit import L2_GRID, choose_l2, cross_fit, simplest_within_error
from pipeline.methods.folds import stratified_folds
from pipeline.methods.head.problem import HeadProblem, centred
from pipeline.methods.head.rows import with_bias_input
from pipeline.methods.head.solver import NotConverged, fit

L2 = 3e-3
NUM_FOLDS, NUM_CLASSES, NUM_FEATURES = 3, 10, 64
START = torch.zeros(NUM_CLASSES, NUM_FEATURES + 1)


@pytest.fixture(scope="module")
def rows():
    """Real digits, (1, 700, 64) float16; every seventh is outside the folds."""
    images, labels = load_digits(return_X_y=True)
    features = torch.from_numpy(images[:700] / 16).half()[None]
    labels = torch.from_numpy(labels[:700].astype(np.int64))
    keys = np.random.default_rng(0).integers(0, 256, (700, 16), dtype=np.uint8)
    parts = stratified_folds(labels.numpy(), keys, num_folds=NUM_FOLDS, seed=0)
    folds = torch.from_numpy(parts)
    folds[::7] = -1
    return features, labels, folds


def problem_of(features, labels) -> HeadProblem:
    return HeadProblem(features=features, labels=labels, l2=L2)


@pytest.fixture(scope="module")
def fitted(rows):
    features, labels, folds = rows
    return cross_fit(problem_of(features, labels), folds=folds, start=START)


def sklearn_head(features, labels, *, l2: float = L2) -> torch.Tensor:
    """W of an independent fit; scikit-learn weighs the sum of losses against ||W||^2 / 2."""
    model = LogisticRegression(
        C=1 / (l2 * len(labels)), solver="newton-cholesky", tol=1e-12, max_iter=1000
    )
    model.fit(features.double().numpy(), labels.numpy())
    return centred(torch.from_numpy(np.column_stack([model.coef_, model.intercept_])))


def test_heads_are_those_of_scikit_learn_without_each_fold_and_with_all(rows, fitted):
    features, labels, folds = rows
    assert fitted.weights.shape == (NUM_FOLDS, NUM_CLASSES, NUM_FEATURES + 1)
    for fold in range(NUM_FOLDS):
        others = (folds >= 0) & (folds != fold)
        expected = sklearn_head(features[0][others], labels[others])
        torch.testing.assert_close(fitted.weights[fold], expected, rtol=1e-5, atol=1e-7)
    inside = folds >= 0
    expected = sklearn_head(features[0][inside], labels[inside])
    torch.testing.assert_close(fitted.overall, expected, rtol=1e-5, atol=1e-7)
    assert 0 < fitted.gradient_norm <= 1e-8


def test_each_row_is_predicted_by_the_head_that_has_not_seen_it(rows, fitted):
    features, _, folds = rows
    logits = fitted.logits_of(features[0], folds)
    assert logits.dtype == torch.float32
    heads = {-1: fitted.overall} | dict(enumerate(fitted.weights))
    for row, fold, found in zip(features[0], folds.tolist(), logits, strict=True):
        expected = heads[fold][:, :-1] @ row.double() + heads[fold][:, -1]
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_rows_may_be_predicted_in_any_order_and_number(rows, fitted, monkeypatch):
    features, _, folds = rows
    whole = fitted.logits_of(features[0], folds)
    turned = torch.randperm(len(folds), generator=torch.Generator().manual_seed(0))
    again = fitted.logits_of(features[0][turned], folds[turned])
    torch.testing.assert_close(again, whole[turned])
    monkeypatch.setattr("pipeline.influence.cross_fit._ROWS", 11)
    torch.testing.assert_close(fitted.logits_of(features[0], folds), whole)


@pytest.mark.parametrize("row", [1, 250, 699])
def test_a_rows_own_label_and_features_do_not_reach_its_own_head(rows, fitted, row):
    features, labels, folds = (part.clone() for part in rows)
    labels[row] = (labels[row] + 1) % NUM_CLASSES
    features[0, row] = features[0, row].flip(0)
    changed = cross_fit(problem_of(features, labels), folds=folds, start=START)
    fold = int(folds[row])
    for head in range(NUM_FOLDS):
        assert torch.equal(changed.weights[head], fitted.weights[head]) == (head == fold)
    assert not torch.equal(changed.overall, fitted.overall)


def test_rows_outside_the_folds_are_not_read(rows, fitted):
    features, labels, folds = (part.clone() for part in rows)
    features[:, folds < 0] = torch.nan
    labels[folds < 0] = 0
    again = cross_fit(problem_of(features, labels), folds=folds, start=START)
    assert torch.equal(again.weights, fitted.weights)
    assert torch.equal(again.overall, fitted.overall)
    assert again.logits_of(features[0], folds).isnan().any(dim=1).equal(folds < 0)


def test_views_are_averaged_as_losses(rows):
    features, labels, folds = rows
    views = torch.cat([features, features.flip(2) / 2])
    found = cross_fit(problem_of(views, labels), folds=folds, start=START)
    others = (folds >= 0) & (folds != 1)
    expected = sklearn_head(views[:, others].flatten(0, 1), labels[others].repeat(2))
    torch.testing.assert_close(found.weights[1], expected, rtol=1e-5, atol=1e-7)


def test_features_may_be_mapped_from_a_file(rows, fitted, tmp_path):
    features, labels, folds = rows
    np.save(tmp_path / "features.npy", features[0].numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "features.npy", mmap_mode="c"))
    again = cross_fit(problem_of(mapped[None], labels), folds=folds, start=START)
    assert torch.equal(again.weights, fitted.weights)
    assert torch.equal(again.logits_of(mapped, folds), fitted.logits_of(features[0], folds))


@pytest.mark.parametrize("folds", [[0, 0, 0, -1], [0, 2, 2, 0], [-1, -1, -1, -1], [-1, 1, 1, 1]])
def test_folds_that_leave_nothing_to_fit_or_to_predict_are_rejected(folds):
    with pytest.raises(ValueError, match=r"folds must be 2"):
        cross_fit(
            problem_of(torch.zeros(1, 4, 2), torch.tensor([0, 1, 0, 1])),
            folds=torch.tensor(folds),
            start=torch.zeros(2, 3),
        )


@pytest.fixture(scope="module")
def problem(rows) -> HeadProblem:
    """60 rows: so few that too small an l2 costs much."""
    features, labels, _ = rows
    return HeadProblem(features=features[:, :60], labels=labels[:60], l2=1.0)


def held_out_loss(rows):
    features, labels, _ = rows
    inputs = with_bias_input(features[0, 200:].double())
    return lambda weight: F.cross_entropy(inputs @ weight.T, labels[200:]).item()


def test_the_chosen_l2_is_the_best_of_all(rows, problem):
    loss = held_out_loss(rows)
    choice = choose_l2(lambda l2: replace(problem, l2=l2), loss, START, gtol=1e-10)
    heads = {l2: fit(replace(problem, l2=l2), start=START).weight for l2 in L2_GRID}
    best = min(heads, key=lambda l2: loss(heads[l2]))
    assert choice.l2 == best
    assert choose_l2(lambda l2: replace(problem, l2=l2), loss, START).l2 == best
    assert L2_GRID[0] > best > L2_GRID[-1]
    torch.testing.assert_close(choice.weight, heads[best], rtol=1e-5, atol=1e-6)
    tried = [l2 for l2, _ in choice.losses]
    assert tried == list(L2_GRID[: L2_GRID.index(best) + 3])
    for l2, found in choice.losses:
        assert found == pytest.approx(loss(heads[l2]), rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "num_tried", "best"),
    [
        ([5, 4, 3, 2, 1], 5, 4),
        ([1, 2, 3, 0, 0], 3, 0),
        ([3, 4, 2, 3, 1], 5, 4),
        ([3, 1, 2, 2, 3], 5, 1),
        ([3, 1, 2, 1, 5], 5, 1),
        ([3, 4, 3, 4, 5], 5, 0),
        ([5, 1, 2, 3, 0], 4, 1),
    ],
)
def test_the_path_ends_after_two_rises_in_a_row(problem, losses, num_tried, best):
    grid, given = L2_GRID[:5], iter(losses)
    seen = []

    def loss(weight):
        seen.append(weight)
        return float(next(given))

    choice = choose_l2(lambda l2: replace(problem, l2=l2), loss, START, grid=grid)
    assert choice.losses == list(zip(grid, losses, strict=True))[:num_tried]
    assert choice.l2 == grid[best]
    assert torch.equal(choice.weight, seen[best])


def test_the_path_ends_where_no_head_can_be_fitted(rows):
    """Features of 1e8 leave a gradient of 1e-9, by rounding alone."""
    four = rows[0][:, :40, 18:22].double()
    labels, start = torch.arange(40) % 3 // 2, torch.zeros(2, 5)

    def problem_at(l2):
        features = four if l2 > 1e-3 else 1e8 * four
        return HeadProblem(features=features, labels=labels, l2=l2)

    grid = (1e-1, 1e-2, 1e-9, 1e-10)
    choice = choose_l2(problem_at, lambda _: 1.0, start, grid=grid, gtol=1e-10)
    assert [l2 for l2, _ in choice.losses] == [1e-1, 1e-2]
    with pytest.raises(NotConverged):
        choose_l2(problem_at, lambda _: 1.0, start, grid=grid[2:], gtol=1e-10)


@pytest.mark.parametrize("grid", [(), (1e-3, 1e-2), (1e-2, 1e-2)])
def test_a_grid_that_does_not_fall_is_rejected(problem, grid):
    with pytest.raises(ValueError, match="grid must be falling"):
        choose_l2(lambda _: problem, lambda _: 1.0, START, grid=grid)


def test_a_loss_that_is_not_finite_is_rejected(problem):
    with pytest.raises(ValueError, match=r"target.*nan at l2 1\.0e-01"):
        choose_l2(lambda l2: replace(problem, l2=l2), lambda _: float("nan"), START)


def test_the_simplest_model_that_is_not_shown_to_be_worse_is_taken():
    best = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    noisy = best + torch.tensor([0.2, -0.1, 0.1, -0.1]).double()  # 0.025 worse, error 0.075
    worse = best + torch.tensor([0.1, 0.1, 0.1, 0.2]).double()  # 0.125 worse, error 0.025
    assert simplest_within_error([worse, noisy, best]) == 1
    assert simplest_within_error([noisy, worse, best]) == 0
    assert simplest_within_error([worse, best, noisy]) == 1
    assert simplest_within_error([best, best]) == 0


def test_one_row_has_no_error_so_the_least_loss_is_taken():
    assert simplest_within_error([torch.tensor([0.3]), torch.tensor([0.1])]) == 1
