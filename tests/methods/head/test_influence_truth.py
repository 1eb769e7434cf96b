"""Scores against what they predict: heads that were fitted again.

Gaussian classes that overlap, 400 rows, a fifth of the labels wrong, a teacher with errors of its
own. What a sample weighs is changed, the head is fitted to its minimum, and the held-out loss is
measured. The thresholds are for p_eff / N of about 0.08.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import HeadScores, heldout_gradient, score_rows
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import fit, solve
from tests.support.head_problems import heldout_loss, refit

N, C, D = 400, 5, 8
NUM_SUBSETS = 60
SEEDS = [0, 1, 2]


@dataclass(frozen=True)
class Toy:
    problem: HeadProblem
    heldout: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    flipped: Tensor
    """Rows whose label is wrong, (N,) bool."""


@dataclass(frozen=True)
class Point:
    """A problem's minimum."""

    weight: Tensor
    scores: HeadScores
    leverage: float
    """p_eff / N."""


def toy(seed, *, flips=0.2, spread=1.0, teacher="noisy", kd_weight=0.5, num_features=D, l2=1e-2):
    """A mixture of Gaussians of unit variance; nothing is distilled."""
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(C, num_features, generator=generator).double()
    features, truth = drawn(centres, N, generator=generator)
    flipped = torch.rand(N, generator=generator) < flips
    other = (truth + torch.randint(1, C, (N,), generator=generator)) % C
    logits = teacher_logits(features, centres, kind=teacher, generator=generator)
    problem = HeadProblem(
        features=features[None],
        labels=torch.where(flipped, other, truth),
        soft_labels=torch.softmax(logits, dim=1)[None],
        distilled=torch.zeros(N, dtype=torch.float64),
        kd_weight=kd_weight,
        l2=l2,
        rows_per_chunk=200,
    )
    heldout = drawn(centres, 400, generator=generator)
    return Toy(problem, heldout, drawn(centres, 4000, generator=generator), flipped)


def drawn(centres, count, *, generator):
    labels = torch.randint(C, (count,), generator=generator)
    noise = torch.randn(count, centres.shape[1], generator=generator)
    return centres[labels] + noise.double(), labels


def teacher_logits(features, centres, *, kind, generator):
    """The true posterior's, with noise; or with two classes confused in half of the space."""
    logits = -torch.cdist(features, centres).square() / 2
    if kind == "noisy":
        return logits + torch.randn(logits.shape, generator=generator)
    confused = logits[:, [1, 0, *range(2, C)]]
    return torch.where(features[:, :1] > 0, confused, logits)


def point_of(problem, heldout):
    weight = fit(problem, start=torch.zeros(C, problem.features.shape[2] + 1), gtol=1e-11).weight
    linear = problem.linearise(weight)
    factors = ekfac(linear)
    gradient = heldout_gradient(weight, *heldout)
    solution = solve(linear, gradient, preconditioner=factors).solution
    leverage = factors.effective_parameters / problem.num_samples
    return Point(weight, score_rows(linear, solution), leverage)


@functools.cache
def toy_and_point(seed):
    made = toy(seed)
    return made, point_of(made.problem, made.heldout)


def kept_only(problem, kept):
    """The sum over fewer samples; N and the regulariser of the whole stay as they are."""
    return dataclasses.replace(
        problem,
        features=problem.features[:, kept],
        labels=problem.labels[kept],
        soft_labels=problem.soft_labels[:, kept],
        distilled=problem.distilled[kept],
        l2=problem.l2 * problem.num_samples / int(kept.sum()),
    )


def refitted_loss(problem, start, heldout):
    return heldout_loss(fit(problem, start=start, gtol=1e-11).weight, heldout)


def stratified_rows(made):
    """80 rows: every fifth, ordered by class and by whether the label is right."""
    order = np.lexsort((made.flipped.numpy(), made.problem.labels.numpy()))
    return torch.from_numpy(order[:: N // 80].copy())


def all_but(row):
    kept = torch.ones(N, dtype=torch.bool)
    kept[row] = False
    return kept


def random_subsets(share, *, seed):
    """NUM_SUBSETS masks that keep ``share`` of the rows, (NUM_SUBSETS, N) bool."""
    generator = torch.Generator().manual_seed(1000 + seed)
    orders = torch.stack([torch.randperm(N, generator=generator) for _ in range(NUM_SUBSETS)])
    return orders < round(share * N)


@functools.cache
def removal_truth(seed):
    """(predicted, true) change of held-out loss for each of 80 rows left out."""
    made, point = toy_and_point(seed)
    rows = stratified_rows(made)
    before = heldout_loss(point.weight, made.heldout)
    true = [
        refitted_loss(kept_only(made.problem, all_but(row)), point.weight, made.heldout) - before
        for row in rows
    ]
    return point.scores.dloss_remove.mean[rows], true


@pytest.mark.parametrize("seed", SEEDS)
def test_removal_scores_equal_leaving_one_out(seed):
    predicted, true = removal_truth(seed)
    assert 0.05 < toy_and_point(seed)[1].leverage < 0.1
    assert pearsonr(predicted, true).statistic >= 0.99
    assert spearmanr(predicted, true).statistic >= 0.98
    assert 0.95 <= np.polyfit(predicted, true, deg=1)[0] <= 1.05


def test_refits_equal_another_optimiser_s():
    made, point = toy_and_point(0)
    features, labels = made.problem.features[0].numpy(), made.problem.labels.numpy()
    for row in stratified_rows(made)[::16]:
        theirs = LogisticRegression(
            C=1 / (N * made.problem.l2), solver="newton-cg", tol=1e-10, max_iter=1000
        )
        theirs.fit(features, labels, sample_weight=all_but(row).double().numpy())
        weight = torch.from_numpy(np.column_stack([theirs.coef_, theirs.intercept_]))
        ours = refitted_loss(kept_only(made.problem, all_but(row)), point.weight, made.heldout)
        assert ours == pytest.approx(heldout_loss(weight, made.heldout), rel=1e-8)


def test_refits_of_distilled_rows_equal_dense_newton_steps():
    made, point = toy_and_point(0)
    half = dataclasses.replace(made.problem, distilled=random_subsets(0.5, seed=0)[0].double())
    expected = heldout_loss(refit(half, point.weight), made.heldout)
    ours = refitted_loss(half, point.weight, made.heldout)
    assert ours == pytest.approx(expected, rel=1e-12)


def test_many_features_and_little_regularisation_raise_the_leverage():
    made = toy(0, num_features=64, l2=1e-3)
    assert point_of(made.problem, made.heldout).leverage > 0.25


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("share", "least"), [(0.5, 0.85), (0.9, 0.95)])
def test_removal_scores_rank_random_subsets(share, least, seed):
    made, point = toy_and_point(seed)
    kept = random_subsets(share, seed=seed)
    true = [
        refitted_loss(kept_only(made.problem, mask), point.weight, made.heldout) for mask in kept
    ]
    predicted = (~kept).double() @ point.scores.dloss_remove.mean
    assert spearmanr(predicted, true).statistic >= least


@pytest.mark.parametrize("seed", SEEDS)
def test_swap_scores_equal_distilling_one(seed):
    made, point = toy_and_point(seed)
    rows = stratified_rows(made)
    before = heldout_loss(point.weight, made.heldout)
    true = []
    for row in rows:
        swapped = dataclasses.replace(made.problem, distilled=(~all_but(row)).double())
        true.append(refitted_loss(swapped, point.weight, made.heldout) - before)
    predicted = point.scores.dloss_swap.mean[rows]
    assert pearsonr(predicted, true).statistic >= 0.99
    assert 0.95 <= np.polyfit(predicted, true, deg=1)[0] <= 1.05


@pytest.mark.parametrize("seed", SEEDS)
def test_swap_scores_rank_random_halves(seed):
    made, point = toy_and_point(seed)
    swapped = random_subsets(0.5, seed=seed).double()
    true = [
        refitted_loss(dataclasses.replace(made.problem, distilled=mask), point.weight, made.heldout)
        for mask in swapped
    ]
    predicted = swapped @ point.scores.dloss_swap.mean
    assert spearmanr(predicted, true).statistic >= 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_undistill_scores_equal_undistilling_one(seed):
    made, _ = toy_and_point(seed)
    everything = dataclasses.replace(made.problem, distilled=torch.ones(N, dtype=torch.float64))
    point = point_of(everything, made.heldout)
    rows = stratified_rows(made)
    before = heldout_loss(point.weight, made.heldout)
    true = []
    for row in rows:
        undone = dataclasses.replace(everything, distilled=all_but(row).double())
        true.append(refitted_loss(undone, point.weight, made.heldout) - before)
    predicted = point.scores.dloss_undistill.mean[rows]
    assert pearsonr(predicted, true).statistic >= 0.99
    assert 0.95 <= np.polyfit(predicted, true, deg=1)[0] <= 1.05


def utility_losses(seed):
    """Test loss of a student by what was distilled; the teacher confuses two classes."""
    made = toy(seed, flips=0.1, teacher="confused", kd_weight=0.9)
    nothing = torch.zeros(N, dtype=torch.float64)
    swapped = point_of(made.problem, made.heldout)
    everything = dataclasses.replace(made.problem, distilled=torch.ones_like(nothing))
    chosen = swapped.scores.dloss_swap.mean < 0
    undistill = point_of(everything, made.heldout).scores.dloss_undistill.mean
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    rows = {
        "swap": chosen,
        "undistill": undistill > 0,
        "random": order < chosen.sum(),
        "all": nothing == 0,
        "none": nothing == 1,
    }
    return {
        name: refitted_loss(
            dataclasses.replace(made.problem, distilled=mask.double()), swapped.weight, made.test
        )
        for name, mask in rows.items()
    }


@pytest.fixture(scope="module")
def utility():
    """`utility_losses` of twelve seeds by name, (12,) each."""
    losses = [utility_losses(seed) for seed in range(12)]
    return {name: np.array([loss[name] for loss in losses]) for name in losses[0]}


@pytest.mark.parametrize("score", ["swap", "undistill"])
@pytest.mark.parametrize(("rival", "least"), [("random", 10), ("all", 10), ("none", 11)])
def test_distilling_what_scores_choose_helps_a_student(utility, score, rival, least):
    assert (utility[score] < utility[rival]).sum() >= least


@pytest.mark.parametrize("seed", SEEDS)
def test_harmful_rows_are_the_mislabelled_ones(seed):
    made = toy(seed, flips=0.1, spread=1.5)
    harm = -point_of(made.problem, made.heldout).scores.dloss_remove.mean
    assert roc_auc_score(made.flipped, harm) >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_float16_features_and_logits_keep_the_ranks(seed):
    made, point = toy_and_point(seed)
    logits = made.problem.soft_labels.log()
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    stored = dataclasses.replace(
        made.problem,
        features=made.problem.features.half(),
        soft_labels=torch.softmax(shifted.half().double(), dim=-1),
    )
    heldout = made.heldout[0].half().double(), made.heldout[1]
    rough = point_of(stored, heldout).scores
    for name in ("dloss_remove", "dloss_swap", "dloss_undistill"):
        ranks = spearmanr(getattr(rough, name).mean, getattr(point.scores, name).mean)
        assert 0.9999 <= ranks.statistic < 1.0
