"""The oracle is one autograd function of dense tensors; see `tests.support.head_problems`."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_rows, sum_rule_error
from pipeline.methods.head.preconditioner import class_blocks
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import NotConverged, fit, solve
from tests.support.cases import looped
from tests.support.head_problems import (
    class_factor,
    data_hessian,
    dense_hessian,
    dense_solve,
    heldout_loss,
    heldout_of,
    objective,
    problem_of,
    random_head,
    refit,
    scored,
)

KINDS = list(itertools.product([1, 3], [1.0, 4.0], [False, True], [0.0, 0.7, 1.0]))


@looped("num_views, temperature, regularise_bias, kd_weight", KINDS)
def test_loss_gradient_and_hvp_equal_autograd(num_views, temperature, regularise_bias, kd_weight):
    problem = problem_of(
        num_views=num_views,
        temperature=temperature,
        regularise_bias=regularise_bias,
        kd_weight=kd_weight,
    )
    weight = random_head(problem)
    direction = random_head(problem, seed=3)
    gradient = torch.func.grad(lambda w: objective(problem, w))(weight)
    _, product = torch.autograd.functional.hvp(lambda w: objective(problem, w), weight, direction)
    assert problem.loss(weight) == pytest.approx(float(objective(problem, weight)), rel=1e-12)
    assert_close(problem.gradient(weight), gradient, rtol=1e-10, atol=1e-13)
    assert_close(problem.hvp(weight, direction), product, rtol=1e-10, atol=1e-13)
    dense = dense_hessian(problem, weight) @ direction.flatten()
    assert_close(problem.hvp(weight, direction).flatten(), dense, rtol=1e-10, atol=1e-13)


@looped("size", [(8, 1, 2), (50, 7, 5), (23, 12, 9)])
def test_derivatives_equal_autograd_for_other_sizes(size):
    num_samples, num_features, num_classes = size
    problem = problem_of(
        seed=4,
        num_views=2,
        num_samples=num_samples,
        num_features=num_features,
        num_classes=num_classes,
        temperature=2.5,
        distilled=torch.linspace(0, 1, num_samples),
    )
    weight, direction = random_head(problem), random_head(problem, seed=3)
    gradient = torch.func.grad(lambda w: objective(problem, w))(weight)
    _, product = torch.autograd.functional.hvp(lambda w: objective(problem, w), weight, direction)
    assert_close(problem.gradient(weight), gradient, rtol=1e-10, atol=1e-13)
    assert_close(problem.hvp(weight, direction), product, rtol=1e-10, atol=1e-13)


def test_heldout_gradient_equals_autograd():
    problem = problem_of()
    weight, (features, labels) = random_head(problem), heldout_of(problem)
    gradient = torch.func.grad(
        lambda w: F.cross_entropy(features @ w[:, :-1].T + w[:, -1], labels)
    )(weight)
    found = heldout_gradient(weight, features, labels, rows_per_chunk=7)
    assert_close(found, gradient, rtol=1e-10, atol=1e-14)


@looped("num_views, temperature, regularise_bias, kd_weight", KINDS)
def test_conjugate_gradients_equal_a_dense_solve(
    num_views, temperature, regularise_bias, kd_weight
):
    problem = problem_of(
        num_views=num_views,
        temperature=temperature,
        regularise_bias=regularise_bias,
        kd_weight=kd_weight,
        l2=1e-4,
    )
    weight = random_head(problem)
    right_side = heldout_gradient(weight, *heldout_of(problem))
    found = solve(problem.linearise(weight), right_side)
    expected = dense_solve(dense_hessian(problem, weight), right_side)
    assert_close(found.solution, expected, rtol=1e-8, atol=1e-8 * float(expected.norm()))
    assert found.relative_residual <= 1e-10
    assert found.solution.sum(dim=0).norm() <= 1e-10 * found.solution.norm()


@looped("temperature", [1.0, 4.0])
def test_ekfac_holds_the_hessian_s_diagonal_in_its_basis(temperature):
    problem = problem_of(num_views=2, temperature=temperature)
    weight = random_head(problem)
    factors = ekfac(problem.linearise(weight))
    basis = torch.kron(factors.class_basis, factors.input_basis)
    diagonal = (basis.T @ data_hessian(problem, weight) @ basis).diagonal()
    assert_close(factors.eigenvalues.flatten(), diagonal, rtol=1e-9, atol=1e-12)


def test_ekfac_is_at_least_as_close_to_the_hessian_as_kfac():
    for seed in range(5):
        problem = problem_of(seed=seed, temperature=4.0)
        weight = random_head(problem)
        hessian = data_hessian(problem, weight)
        factors = ekfac(problem.linearise(weight))
        basis = torch.kron(factors.class_basis, factors.input_basis)
        inputs = F.pad(problem.features[0], (0, 1), value=1.0)
        kfac = torch.kron(class_factor(problem, weight), inputs.T @ inputs / len(inputs))
        ours = basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T
        assert torch.norm(ours - hessian) <= torch.norm(kfac - hessian)
        # The bases are those of the K-FAC factors, not their transposes.
        rotated = basis.T @ kfac @ basis
        assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-12)


def test_ekfac_inverse_is_exact_where_every_row_bends_alike():
    problem = problem_of(regularise_bias=True, kd_weight=0.0)
    weight = random_head(problem)
    weight[:, :-1] = 0.0
    linear = problem.linearise(weight)
    right_side = heldout_gradient(weight, *heldout_of(problem))
    expected = torch.linalg.solve(dense_hessian(problem, weight), right_side.flatten())
    factors = ekfac(linear)
    assert_close(factors.inverse(right_side).flatten(), expected, rtol=1e-9, atol=1e-12)
    assert solve(linear, right_side, preconditioner=factors).iterations == 1


def test_ekfac_saves_iterations():
    problem = problem_of(num_samples=400, num_features=20, num_classes=6, l2=1e-4)
    problem = dataclasses.replace(
        problem, features=problem.features * torch.logspace(-1.5, 0.5, 20).double()
    )
    linear = problem.linearise(random_head(problem) / 3)
    right_side = heldout_gradient(linear.weight, *heldout_of(problem))
    factors = ekfac(linear)
    flat = dataclasses.replace(factors, eigenvalues=torch.ones_like(factors.eigenvalues))
    plain = solve(linear, right_side, preconditioner=flat, max_iterations=5000)
    ours = solve(linear, right_side, preconditioner=factors)
    assert_close(ours.solution, plain.solution, rtol=1e-6, atol=1e-6)
    assert ours.iterations < plain.iterations / 2


@looped("l2", [1e-3, 1e-1])
def test_effective_parameters_are_near_the_dense_trace(l2):
    problem = problem_of(num_samples=200, l2=l2)
    weight = random_head(problem) / 3
    hessian = data_hessian(problem, weight)
    damped = hessian + l2 * torch.eye(len(hessian), dtype=torch.float64)
    trace = float(torch.linalg.solve(damped, hessian).trace())
    assert ekfac(problem.linearise(weight)).effective_parameters == pytest.approx(trace, rel=0.1)


@looped("temperature", [1.0, 4.0])
@looped("l2", [1e-6, 1e-2])
@looped("scale", [0.0, 1.0, 1e4])
def test_fit_reaches_the_same_minimum_from_any_start(temperature, l2, scale):
    problem = problem_of(num_views=2, temperature=temperature, l2=l2)
    found = fit(problem, start=scale * random_head(problem), gtol=1e-11)
    expected = refit(problem, found.weight + 1e-3 * random_head(problem, seed=5))
    assert found.gradient_norm <= 1e-11
    assert problem.gradient(found.weight).norm() <= 1e-11
    assert found.loss == pytest.approx(float(objective(problem, expected)), rel=1e-12)


def test_fit_of_separable_rows_converges_with_little_regularisation():
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    features = (3.0 * torch.eye(3, 8)[labels] + 0.1 * noise)[None]
    problem = HeadProblem(features=features, labels=labels, l2=1e-6)
    start = 500 * torch.eye(3, 9)[[1, 2, 0]]
    assert fit(problem, start=start).gradient_norm <= 1e-10


def test_fit_at_its_own_minimum_takes_no_step():
    problem = problem_of()
    found = fit(problem, start=random_head(problem))
    assert fit(problem, start=found.weight).iterations == 0


@looped("temperature", [1.0, 4.0])
@looped("num_views, regularise_bias", [(1, False), (3, True)])
def test_removal_scores_equal_refitting_with_another_sample_weight(
    temperature, num_views, regularise_bias
):
    problem = problem_of(
        num_views=num_views, temperature=temperature, regularise_bias=regularise_bias
    )
    heldout = heldout_of(problem)
    scores, linear, _ = scored(problem, heldout=heldout)
    for row in (0, 1, 17, 38):
        moved = [
            heldout_loss(refit(problem, linear.weight, sample_weights=weights), heldout)
            for weights in (one_changed(row, by=1e-3), one_changed(row, by=-1e-3))
        ]
        assert float(scores.dloss_remove.mean[row]) == pytest.approx(
            (moved[1] - moved[0]) / 2e-3, rel=1e-5
        )


def one_changed(row, *, by, num_samples=40, base=1.0):
    values = torch.full((num_samples,), base, dtype=torch.float64)
    values[row] += by
    return values


@looped("temperature", [1.0, 4.0])
@looped("num_views", [1, 3])
@looped("name, base", [("dloss_swap", 0.0), ("dloss_undistill", 1.0)])
def test_swap_scores_equal_refitting_with_other_supervision(name, base, num_views, temperature):
    problem = problem_of(num_views=num_views, temperature=temperature)
    problem = dataclasses.replace(problem, distilled=one_changed(0, by=0.0, base=base))
    heldout = heldout_of(problem)
    scores, linear, _ = scored(problem, heldout=heldout)
    toward = 1e-3 if name == "dloss_swap" else -1e-3
    for row in (0, 5, 22):
        # The oracle's objective goes on a little beyond [0, 1], so the difference is central.
        moved = [
            heldout_loss(refit(beyond(problem, row, by=by, base=base), linear.weight), heldout)
            for by in (toward, -toward)
        ]
        assert float(getattr(scores, name).mean[row]) == pytest.approx(
            (moved[0] - moved[1]) / 2e-3, rel=1e-5
        )


def beyond(problem, row, *, by, base):
    """The problem with s of one row moved past its bounds, which `HeadProblem` refuses."""
    moved = dataclasses.replace(problem)
    object.__setattr__(moved, "distilled", one_changed(row, by=by, base=base))
    return moved


@looped("temperature", [1.0, 4.0])
@looped("num_views", [1, 3])
@looped("regularise_bias", [False, True])
def test_removal_scores_obey_the_sum_rule(temperature, num_views, regularise_bias):
    problem = problem_of(
        num_views=num_views, temperature=temperature, regularise_bias=regularise_bias
    )
    scores, linear, solution = scored(problem)
    mask = torch.ones(6, dtype=torch.float64)
    mask[-1] = float(regularise_bias)
    expected = -problem.l2 * float((solution * mask * linear.weight).sum())
    assert float(scores.dloss_remove.mean.sum()) == pytest.approx(expected, rel=1e-8)
    assert sum_rule_error(scores, linear=linear, solution=solution) <= 1e-8


@looped("temperature", [1.0, 4.0])
def test_chunk_size_and_kept_chunks_do_not_change_scores(temperature):
    problem = problem_of(num_views=2, temperature=temperature)
    scores, linear, solution = scored(problem)
    for rows_per_chunk, cache_bytes in itertools.product([1, 13, 4096], [0, 2**30]):
        other = dataclasses.replace(problem, rows_per_chunk=rows_per_chunk)
        again = score_rows(other.linearise(linear.weight, cache_bytes=cache_bytes), solution)
        assert_close(again.dloss_remove.mean, scores.dloss_remove.mean, rtol=1e-10, atol=1e-15)
        assert_close(again.dloss_swap.std, scores.dloss_swap.std, rtol=1e-10, atol=1e-15)
        assert_close(other.gradient(solution), problem.gradient(solution))
    assert problem.linearise(linear.weight, cache_bytes=0).kept is None
    assert problem.linearise(linear.weight).kept is not None


def test_permuting_samples_permutes_scores():
    problem = problem_of(num_views=2, temperature=4.0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(
        problem,
        features=problem.features[:, order],
        labels=problem.labels[order],
        soft_labels=problem.soft_labels[:, order],
        distilled=problem.distilled[order],
    )
    here, there = scored(problem)[0], scored(moved)[0]
    for name in ("dloss_remove", "dloss_swap", "dloss_undistill"):
        assert_close(
            getattr(there, name).mean, getattr(here, name).mean[order], rtol=1e-7, atol=1e-11
        )


def test_renaming_classes_does_not_change_scores():
    problem = problem_of(temperature=4.0)
    features, labels = heldout_of(problem)
    names = torch.tensor([2, 0, 3, 1])
    moved = dataclasses.replace(
        problem,
        labels=names[problem.labels],
        soft_labels=problem.soft_labels[..., names.argsort()],
    )
    here = scored(problem, heldout=(features, labels))[0]
    there = scored(moved, heldout=(features, names[labels]))[0]
    assert_close(there.dloss_remove.mean, here.dloss_remove.mean, rtol=1e-7, atol=1e-11)
    assert_close(there.dloss_swap.mean, here.dloss_swap.mean, rtol=1e-7, atol=1e-11)


def test_identical_views_are_one_view():
    problem = problem_of(temperature=4.0)
    doubled = dataclasses.replace(
        problem,
        features=problem.features.repeat(3, 1, 1),
        soft_labels=problem.soft_labels.repeat(3, 1, 1),
    )
    one, three = scored(problem)[0], scored(doubled)[0]
    assert_close(three.dloss_remove.mean, one.dloss_remove.mean, rtol=1e-7, atol=1e-11)
    assert_close(three.dloss_swap.mean, one.dloss_swap.mean, rtol=1e-7, atol=1e-11)
    assert (one.dloss_swap.std == 0).all()
    assert_close(three.dloss_swap.std, torch.zeros(40).double(), rtol=0, atol=1e-12)


def test_views_are_averaged_as_losses_and_their_spread_is_reported():
    problem = problem_of(num_views=3, temperature=4.0)
    scores, linear, solution = scored(problem)
    alone = []
    for view in range(3):
        single = dataclasses.replace(
            problem,
            features=problem.features[view : view + 1],
            soft_labels=problem.soft_labels[view : view + 1],
        )
        alone.append(score_rows(single.linearise(linear.weight), solution))
    for name in ("dloss_remove", "dloss_swap", "dloss_undistill"):
        values = torch.stack([getattr(view, name).mean for view in alone])
        assert_close(getattr(scores, name).mean, values.mean(dim=0))
        assert_close(getattr(scores, name).std, values.std(dim=0, correction=0))


def test_undistilling_is_the_opposite_of_distilling_at_the_same_point():
    scores, _, _ = scored(problem_of(temperature=4.0))
    assert torch.equal(scores.dloss_undistill.mean, -scores.dloss_swap.mean)


def test_at_temperature_1_the_general_curvature_equals_the_short_one():
    problem = problem_of(num_views=2)
    almost = dataclasses.replace(problem, temperature=1.0 + 1e-13)
    weight, direction = random_head(problem), random_head(problem, seed=3)
    assert_close(problem.hvp(weight, direction), almost.hvp(weight, direction))


def test_float16_features_and_float32_soft_labels_are_computed_in_float64():
    problem = problem_of(num_views=2, temperature=4.0)
    stored = dataclasses.replace(
        problem, features=problem.features.half(), soft_labels=problem.soft_labels.float()
    )
    exact = dataclasses.replace(stored, features=stored.features.double())
    weight = random_head(problem)
    assert stored.gradient(weight).dtype == torch.float64
    assert torch.equal(stored.gradient(weight), exact.gradient(weight))
    assert fit(stored, start=weight, gtol=1e-12).gradient_norm <= 1e-12
    rough = scored(stored)[0].dloss_swap.mean
    assert_close(rough, scored(problem)[0].dloss_swap.mean, rtol=2e-2, atol=1e-5)


def test_without_soft_labels_only_removal_is_scored():
    problem = problem_of()
    hard = dataclasses.replace(problem, soft_labels=None, distilled=None)
    weight = random_head(problem)
    nothing = dataclasses.replace(problem, distilled=None)
    assert_close(hard.gradient(weight), nothing.gradient(weight))
    scores = score_rows(hard.linearise(weight), weight)
    assert scores.dloss_swap is None
    assert scores.dloss_undistill is None
    assert score_rows(nothing.linearise(weight), weight).dloss_swap is not None


def test_iterations_that_end_too_early_are_errors_with_their_residual():
    problem = problem_of(l2=1e-5)
    linear = problem.linearise(random_head(problem))
    right_side = heldout_gradient(linear.weight, *heldout_of(problem))
    with pytest.raises(NotConverged, match=r"residual \d\.\de[-+]\d\d after 2 iterations"):
        solve(linear, right_side, max_iterations=2)
    with pytest.raises(NotConverged, match=r"norm \d\.\de[-+]\d\d after 1 iterations"):
        fit(problem, start=random_head(problem), max_iterations=1)


def test_fitting_what_is_not_finite_is_rejected():
    problem = problem_of()
    with pytest.raises(ValueError, match="loss is not finite"):
        fit(problem, start=torch.full((4, 6), float("nan")))
    broken = dataclasses.replace(problem, features=problem.features / 0.0)
    with pytest.raises(ValueError, match="loss is not finite"):
        fit(broken, start=torch.zeros(4, 6))


def test_a_zero_right_side_has_a_zero_solution():
    problem = problem_of()
    found = solve(problem.linearise(random_head(problem)), torch.zeros(4, 6))
    assert (found.solution == 0).all()
    assert (found.iterations, found.relative_residual) == (0, 0.0)


def test_a_right_side_that_no_gradient_could_be_is_rejected():
    linear = problem_of().linearise(torch.zeros(4, 6))
    with pytest.raises(ValueError, match="sum to 0"):
        solve(linear, torch.ones(4, 6))
    with pytest.raises(ValueError, match=r"right_side must be \(4, 6\)"):
        solve(linear, torch.zeros(4, 5))


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(40, 5)},
        {"labels": torch.zeros(39, dtype=torch.int64)},
        {"labels": torch.full((40,), -1)},
        {"soft_labels": torch.full((2, 40, 4), 0.25)},
        {"soft_labels": None},
        {"distilled": torch.zeros(39)},
        {"distilled": torch.full((40,), 1.5)},
        {"distilled": torch.full((40,), float("nan"))},
        {"kd_weight": 1.1},
        {"temperature": 0.0},
        {"l2": 0.0},
        {"rows_per_chunk": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_problems_that_do_not_fit_together_are_rejected(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} "):
        dataclasses.replace(problem_of(), **change)


@looped("shape", [(4, 5), (3, 6)])
def test_weights_of_another_shape_are_rejected(shape):
    with pytest.raises(ValueError, match="weight must have"):
        problem_of().loss(torch.zeros(shape))


def test_labels_beyond_the_head_are_rejected():
    problem = dataclasses.replace(problem_of(), soft_labels=None, distilled=None)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        problem.loss(torch.zeros(2, 6))


def large_problem(**settings):
    """Enough rows for a fit to begin on a part of them."""
    return problem_of(num_samples=20_000, num_features=6, rows_per_chunk=4096, **settings)


def test_a_fit_that_begins_on_a_part_reaches_the_minimum_of_all():
    problem = large_problem(temperature=4.0)
    found = fit(problem, start=random_head(problem), gtol=1e-11)
    assert problem.gradient(found.weight).norm() <= 1e-11
    alone = refit(problem, found.weight + 1e-3 * random_head(problem, seed=5))
    assert found.loss == pytest.approx(float(objective(problem, alone)), rel=1e-12)


def test_a_warm_start_is_not_thrown_away():
    problem = large_problem()
    found = fit(problem, start=random_head(problem), gtol=1e-10)
    near = found.weight + 1e-6 * random_head(problem, seed=8)
    assert fit(problem, start=near, gtol=1e-9).iterations <= 1


def test_curvature_of_some_samples_still_leads_to_the_minimum_of_all():
    problem = problem_of(num_samples=400, l2=1e-3)
    few = dataclasses.replace(problem, hessian_samples=torch.arange(0, 400, 16))
    exact = fit(problem, start=random_head(problem), gtol=1e-11)
    found = fit(few, start=random_head(problem), gtol=1e-8)
    assert found.iterations > exact.iterations  # it had less to go by
    assert_close(found.weight, exact.weight, rtol=1e-4, atol=1e-5)


def test_the_hessian_of_some_samples_is_that_of_the_problem_of_these_samples():
    problem = problem_of(temperature=4.0, num_views=2)
    rows = torch.arange(0, 40, 3)
    few = dataclasses.replace(problem, hessian_samples=rows)
    weight, direction = random_head(problem), random_head(problem, seed=3)
    expected = dense_hessian(
        dataclasses.replace(
            problem,
            features=problem.features[:, rows],
            labels=problem.labels[rows],
            soft_labels=problem.soft_labels[:, rows],
            distilled=problem.distilled[rows],
        ),
        weight,
    )
    found = few.hvp(weight, direction)
    assert_close(found.flatten(), expected @ direction.flatten(), rtol=1e-10, atol=1e-13)
    assert_close(few.gradient(weight), problem.gradient(weight))
    every = dataclasses.replace(problem, hessian_samples=torch.arange(40))
    assert torch.equal(every.hvp(weight, direction), problem.hvp(weight, direction))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_float32_products_are_refined_to_the_float64_answer(temperature):
    problem = problem_of(num_views=2, temperature=temperature, l2=1e-4)
    mixed = dataclasses.replace(problem, products=torch.float32)
    weight = random_head(problem)
    right_side = heldout_gradient(weight, *heldout_of(problem))
    exact = solve(problem.linearise(weight), right_side, rtol=1e-12).solution
    found = solve(mixed.linearise(weight), right_side, rtol=1e-11)
    assert found.relative_residual <= 1e-11
    assert_close(found.solution, exact, rtol=1e-8, atol=1e-8 * float(exact.norm()))
    rough = dataclasses.replace(mixed, dtype=torch.float32).linearise(weight)
    assert not torch.allclose(rough.hvp(exact), problem.hvp(weight, exact), rtol=1e-10, atol=1e-13)


def test_right_sides_that_are_solved_together_are_solved_alone():
    problem = problem_of(temperature=4.0, l2=1e-4)
    linear = problem.linearise(random_head(problem))
    sides = torch.stack(
        [heldout_gradient(linear.weight, *heldout_of(problem, seed=seed)) for seed in (2, 5, 9)]
    )
    together = solve(linear, sides, rtol=1e-11)
    for side, solution in zip(sides, together.solution, strict=True):
        assert_close(solution, solve(linear, side, rtol=1e-11).solution, rtol=1e-7, atol=1e-9)
    factors = ekfac(linear)
    assert_close(factors.inverse(sides)[1], factors.inverse(sides[1]))
    assert_close(class_blocks(linear).inverse(sides)[2], class_blocks(linear).inverse(sides[2]))


def test_class_blocks_are_the_diagonal_blocks_of_the_hessian():
    problem = problem_of(temperature=4.0, num_views=2, regularise_bias=True)
    weight = random_head(problem)
    linear = problem.linearise(weight)
    hessian = dense_hessian(problem, weight).reshape(4, 6, 4, 6)
    inverses = class_blocks(linear).inverses.double()
    for label in range(4):
        block = torch.linalg.inv(inverses[label])
        # Every row counts among those of the largest weight but for a few of 80.
        assert_close(block, hessian[label, :, label], rtol=0.2, atol=0.05)
    few = problem_of(num_samples=20, regularise_bias=True)
    exact = class_blocks(few.linearise(weight)).inverses.double()
    hessian = dense_hessian(few, weight).reshape(4, 6, 4, 6)
    for label in range(4):
        assert_close(torch.linalg.inv(exact[label]), hessian[label, :, label], rtol=1e-4, atol=1e-5)


def test_class_blocks_need_fewer_products_than_ekfac_for_a_sure_head():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 33).double() ** -0.75
    centres = 2.0 * spectrum * torch.randn(30, 32, generator=generator).double()
    labels = torch.randint(30, (6000,), generator=generator)
    noise = torch.randn(6000, 32, generator=generator).double()
    features = 5.0 * (centres[labels] + 0.6 * spectrum * noise)
    problem = HeadProblem(features=features[None], labels=labels, l2=1e-5)
    linear = fit(problem, start=torch.zeros(30, 33)).linear
    right_side = heldout_gradient(linear.weight, features[:500] + 0.3, labels[:500])
    blocks = solve(linear, right_side, rtol=1e-6)
    kronecker = solve(linear, right_side, preconditioner=ekfac(linear), rtol=1e-6)
    assert_close(blocks.solution, kronecker.solution, rtol=1e-3, atol=1e-3)
    assert blocks.iterations < 0.7 * kronecker.iterations
