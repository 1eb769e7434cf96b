"""Scores beside removal and swaps: added terms, difficulty, errors, sets; each against autograd."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.methods.head.data import PickedRows, ProjectedRows, principal_components, read_rows
from pipeline.methods.head.difficulty import score_difficulty
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_added, score_rows
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.set_effects import undistil_effect
from pipeline.methods.head.solver import fit, solve
from tests.support.head_problems import (
    dense_hessian,
    dense_solve,
    heldout_loss,
    heldout_of,
    objective,
    problem_of,
    random_head,
    scored,
)

KINDS = [(num_views, temperature) for num_views in (1, 3) for temperature in (1.0, 4.0)]


def with_added_term(problem, weight, *, row, size):
    """J plus ``size`` times the distillation term of one sample, by autograd alone."""
    tau, added = problem.temperature, 0.0
    for features, targets in zip(problem.features, problem.soft_labels, strict=True):
        z = features[row] @ weight[:, :-1].T + weight[:, -1]
        target = targets[row]
        log_p = F.log_softmax(z / tau, dim=0)
        added = added + tau**2 * (torch.xlogy(target, target) - target * log_p).sum()
    added = size * problem.kd_weight * added / (problem.num_views * problem.num_samples)
    return objective(problem, weight) + added


def minimum(loss, weight, hessian):
    """Newton with a fixed Hessian until the gradient is rounding."""
    for _ in range(200):
        at = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at)
        if gradient.norm() <= 1e-13:
            return at.detach()
        weight = at.detach() - dense_solve(hessian, gradient)
    raise AssertionError("the oracle did not converge")


@pytest.mark.parametrize(("num_views", "temperature"), KINDS)
def test_added_scores_equal_refitting_with_the_term_added(num_views, temperature):
    problem = problem_of(num_views=num_views, temperature=temperature)
    problem = dataclasses.replace(problem, distilled=torch.zeros(40).double())
    heldout = heldout_of(problem)
    _, linear, solution = scored(problem, heldout=heldout)
    found = score_added(linear, solution)
    hessian = dense_hessian(problem, linear.weight)
    for row in (0, 11, 39):
        moved = [
            heldout_loss(
                minimum(
                    lambda w, row=row, size=size: with_added_term(problem, w, row=row, size=size),
                    linear.weight,
                    hessian,
                ),
                heldout,
            )
            for size in (1e-3, -1e-3)
        ]
        assert float(found.mean[row]) == pytest.approx((moved[0] - moved[1]) / 2e-3, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_adding_the_heads_own_labels_is_rejected(temperature):
    problem = problem_of(temperature=temperature)
    teacher = random_head(problem)
    logits = problem.features @ teacher[:, :-1].T + teacher[:, -1]
    own = dataclasses.replace(problem, soft_labels=torch.softmax(logits / temperature, dim=-1))
    with pytest.raises(ValueError, match="soft labels"):
        score_added(own.linearise(teacher), random_head(problem, seed=4))
    hard = dataclasses.replace(problem, soft_labels=None, distilled=None)
    with pytest.raises(ValueError, match="soft_labels are missing"):
        score_added(hard.linearise(teacher), teacher)


def dense_ekfac(factors):
    basis = torch.kron(factors.class_basis, factors.input_basis)
    return basis @ torch.diag((factors.eigenvalues + factors.l2).flatten()) @ basis.T


@pytest.mark.parametrize(("num_views", "temperature"), KINDS)
def test_difficulty_equals_dense_quadratic_forms(num_views, temperature):
    problem = problem_of(num_views=num_views, temperature=temperature)
    weight = random_head(problem)
    linear = problem.linearise(weight)
    factors = ekfac(linear)
    found = score_difficulty(linear, factors)
    inverse = torch.linalg.inv(dense_ekfac(factors))
    for row in (0, 7, 22):
        alone = torch.zeros(40).double()
        alone[row] = 40.0
        at = weight.clone().requires_grad_()
        data_term = objective(dataclasses.replace(problem, l2=1e-300), at, sample_weights=alone)
        (gradient,) = torch.autograd.grad(data_term, at)
        expected = gradient.flatten() @ inverse @ gradient.flatten() / 40
        assert float(found.self_influence[row]) == pytest.approx(float(expected), rel=1e-9)
        bend = dense_hessian(dataclasses.replace(problem, l2=1e-300), weight, sample_weights=alone)
        trace = (bend @ inverse).trace() / 40
        assert float(found.leverage[row]) == pytest.approx(float(trace), rel=1e-9)
    assert float(found.leverage.sum()) == pytest.approx(factors.effective_parameters, rel=1e-9)


def test_errors_are_the_deviation_of_the_groups_over_the_root_of_their_number():
    problem = problem_of(num_views=2, temperature=4.0)
    _, linear, solution = scored(problem)
    features, labels = heldout_of(problem)
    parts = [slice(0, 10), slice(10, 20), slice(20, 30)]
    gradients = [heldout_gradient(linear.weight, features[part], labels[part]) for part in parts]
    solutions = torch.stack(
        [solve(linear, gradient, rtol=1e-12).solution for gradient in gradients]
    )
    found = score_rows(linear, solution, group_solutions=solutions)
    alone = [score_rows(linear, part) for part in solutions]
    for name in ("dloss_remove", "dloss_swap", "dloss_undistill"):
        scores = torch.stack([getattr(part, name).mean for part in alone])
        assert_close(getattr(found, name).error, scores.std(dim=0) / 3**0.5)
        assert_close(scores.mean(dim=0), getattr(found, name).mean, rtol=1e-6, atol=1e-10)
        assert getattr(alone[0], name).error is None


def test_the_effect_of_a_set_is_the_taylor_expansion_of_the_heldout_loss():
    problem = problem_of(num_views=2, temperature=4.0)
    problem = dataclasses.replace(problem, distilled=torch.ones(40).double())
    heldout = heldout_of(problem)
    scores, linear, _ = scored(problem, heldout=heldout)
    chosen = torch.arange(40) % 3 == 0
    target = HeadProblem(features=heldout[0][None], labels=heldout[1], l2=1e-30)
    effect = undistil_effect(linear, chosen, target=target, rtol=1e-12)
    first = float(scores.dloss_undistill.mean[chosen].sum())
    assert effect.first_order == pytest.approx(first, rel=1e-7)
    slope_of = torch.func.grad(
        lambda w: (
            objective(problem, w)
            + sum(undistilled(problem, w, row) for row in chosen.nonzero().flatten())
        )
    )
    pull = slope_of(linear.weight)
    moved = -dense_solve(dense_hessian(problem, linear.weight), pull)
    along = torch.zeros(1, dtype=torch.float64)

    def loss(t):
        weight = linear.weight + t * moved
        return F.cross_entropy(heldout[0] @ weight[:, :-1].T + weight[:, -1], heldout[1])

    bend = torch.autograd.functional.hessian(loss, along)
    expected = first + 0.5 * float(bend)
    assert effect.second_order == pytest.approx(expected, rel=1e-6)


def undistilled(problem, weight, row):
    """Change of J by un-distilling one sample."""
    change = torch.zeros(40).double()
    change[row] = 1.0
    bare = dataclasses.replace(problem, distilled=problem.distilled - change)
    return objective(bare, weight) - objective(problem, weight)


def test_a_few_rows_undistilled_change_the_loss_as_predicted():
    problem = problem_of(num_samples=400, temperature=1.0, l2=1e-2)
    problem = dataclasses.replace(problem, distilled=torch.ones(400).double())
    heldout = heldout_of(problem, num_samples=200)
    _, linear, _ = scored(problem, heldout=heldout)
    chosen = torch.arange(400) % 20 == 0
    target = HeadProblem(features=heldout[0][None], labels=heldout[1], l2=1e-30)
    effect = undistil_effect(linear, chosen, target=target)
    after = dataclasses.replace(problem, distilled=(~chosen).double())
    moved = fit(after, start=linear.weight, gtol=1e-11).weight
    true = heldout_loss(moved, heldout) - heldout_loss(linear.weight, heldout)
    assert effect.second_order == pytest.approx(true, rel=0.1)


def test_rows_that_are_read_are_the_rows_that_are_held():
    problem = problem_of(num_views=2, temperature=4.0)
    order = torch.arange(0, 40, 3)
    read = problem.part(order)
    held = dataclasses.replace(
        problem,
        features=problem.features[:, order],
        labels=problem.labels[order],
        soft_labels=problem.soft_labels[:, order],
        distilled=problem.distilled[order],
    )
    weight = random_head(problem)
    assert torch.equal(read.gradient(weight), held.gradient(weight))
    nested = PickedRows(rows=PickedRows(rows=problem.features, samples=order), samples=order[:4])
    assert torch.equal(read_rows(nested, slice(1, 3)), problem.features[:, order[order[1:3]]])
    assert nested.shape == (2, 4, 5)


def test_principal_components_are_those_of_all_rows():
    rows = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0)).double()
    centre, basis = principal_components(rows, num_components=2, rows_per_chunk=7)
    flat = rows.reshape(-1, 6)
    _, _, vectors = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    assert_close(centre, flat.mean(dim=0))
    assert_close((basis.T @ vectors[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-9)
    seen = ProjectedRows(rows=rows, centre=centre, basis=basis)
    assert seen.shape == (3, 50, 2)
    assert_close(seen.read(slice(4, 9)), (rows[:, 4:9] - centre) @ basis)
    with pytest.raises(ValueError, match=r"num_components must be in \[1, 6\], got 7"):
        principal_components(rows, num_components=7)


def test_all_components_change_no_score():
    problem = problem_of()
    centre, basis = principal_components(problem.features, num_components=5)
    turned = dataclasses.replace(
        problem, features=ProjectedRows(rows=problem.features, centre=centre, basis=basis)
    )
    features, labels = heldout_of(problem)
    here = scored(problem)[0]
    there = scored(turned, heldout=((features - centre) @ basis, labels))[0]
    for name in ("dloss_remove", "dloss_swap"):
        assert_close(getattr(there, name).mean, getattr(here, name).mean, rtol=1e-6, atol=1e-10)


def test_a_shorter_step_scales_both_terms_of_a_set():
    problem = problem_of(temperature=4.0)
    problem = dataclasses.replace(problem, distilled=torch.full((40,), 0.5).double())
    heldout = heldout_of(problem)
    _, linear, _ = scored(problem, heldout=heldout)
    chosen = torch.arange(40) % 2 == 0
    target = HeadProblem(features=heldout[0][None], labels=heldout[1], l2=1e-30)
    whole = undistil_effect(linear, chosen, target=target, rtol=1e-12)
    half = undistil_effect(linear, chosen, target=target, step=0.5, rtol=1e-12)
    assert half.first_order == pytest.approx(0.5 * whole.first_order, rel=1e-9)
    bend = whole.second_order - whole.first_order
    assert half.second_order - half.first_order == pytest.approx(0.25 * bend, rel=1e-8)
