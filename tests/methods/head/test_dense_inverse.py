"""Exact curvature: self-influence, leverage and p_eff against autograd's dense Hessian."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from pipeline.methods.head import dense_inverse as dense
from pipeline.methods.head.dense_inverse import dense_inverse
from pipeline.methods.head.difficulty import difficulty, score_difficulty
from pipeline.methods.head.effective_parameters import effective_parameters
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.preconditioner import preconditioner
from pipeline.methods.head.solver import fit
from tests.support.cases import looped
from tests.support.head_problems import dense_hessian, objective, problem_of, random_head

KINDS = [
    (num_views, temperature, regularise_bias)
    for num_views in (1, 3)
    for temperature in (1.0, 4.0)
    for regularise_bias in (False, True)
]


def centred_inverse(problem, weight):
    """The pseudo-inverse of autograd's Hessian on weights that are centred over classes."""
    num_classes, num_inputs = weight.shape
    centre = torch.eye(num_classes).double() - 1.0 / num_classes
    projector = torch.kron(centre, torch.eye(num_inputs).double())
    return torch.linalg.pinv(projector @ dense_hessian(problem, weight) @ projector, hermitian=True)


@looped("num_views, temperature, regularise_bias", KINDS)
def test_difficulty_is_exact_for_small_heads(num_views, temperature, regularise_bias):
    problem = problem_of(
        num_views=num_views, temperature=temperature, regularise_bias=regularise_bias
    )
    weight = random_head(problem)
    linear = problem.linearise(weight)
    inverse = centred_inverse(problem, weight)
    exact = dense_inverse(linear)
    assert_close(exact.inverse.reshape(inverse.shape), inverse, rtol=1e-8, atol=1e-10)
    found = difficulty(linear, exact)
    data = dataclasses.replace(problem, l2=1e-300)
    for row in (0, 7, 22):
        alone = torch.zeros(40).double()
        alone[row] = 40.0
        at = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(data, at, sample_weights=alone), at)
        expected = gradient.flatten() @ inverse @ gradient.flatten() / 40
        assert float(found.self_influence[row]) == pytest.approx(float(expected), rel=1e-9)
        bend = dense_hessian(data, weight, sample_weights=alone)
        assert float(found.leverage[row]) == pytest.approx(
            float((bend @ inverse).trace()) / 40, rel=1e-9
        )
    trace = float((dense_hessian(data, weight) @ inverse).trace())
    assert exact.effective_parameters == pytest.approx(trace, rel=1e-9)
    assert float(found.leverage.sum()) == pytest.approx(trace, rel=1e-9)


def test_self_influence_is_the_derivative_of_the_own_loss():
    """Removing a part e of a sample's weight raises its loss by e times its self-influence."""
    problem = dataclasses.replace(
        problem_of(), soft_labels=None, distilled=None, kd_weight=0.0, l2=3e-2
    )
    fitted = fit(problem, start=torch.zeros(4, 6), gtol=1e-12)
    found = dense_inverse(fitted.linear).self_influence()
    oracle = dataclasses.replace(
        problem,
        soft_labels=torch.full((1, 40, 4), 0.25).double(),
        distilled=torch.zeros(40).double(),
    )
    hessian = torch.linalg.pinv(dense_hessian(oracle, fitted.weight))
    for row in (3, 19):
        losses = []
        for part in (1e-3, -1e-3):
            weights = torch.ones(40).double()
            weights[row] -= part
            weight = fitted.weight
            for _ in range(60):
                at = weight.clone().requires_grad_()
                value = objective(oracle, at, sample_weights=weights)
                (gradient,) = torch.autograd.grad(value, at)
                weight = weight - (hessian @ gradient.flatten()).view_as(weight)
            assert float(gradient.norm()) < 1e-12
            logits = problem.features[0, row] @ weight[:, :-1].T + weight[:, -1]
            losses.append(-torch.log_softmax(logits, dim=0)[problem.labels[row]])
        assert float(losses[0] - losses[1]) / 2e-3 == pytest.approx(float(found[row]), rel=1e-5)


def test_scores_of_all_samples_have_the_curvature_of_some():
    problem = problem_of(hessian_samples=torch.arange(0, 40, 2), num_views=2)
    linear = problem.linearise(random_head(problem))
    found = dense_inverse(linear)
    of_part = dense_inverse(linear.problem.curvature.linearise(linear.weight))
    assert_close(found.inverse, of_part.inverse)
    assert len(found.leverage()) == len(found.self_influence()) == 40


def test_large_heads_use_ekfac_and_say_so(monkeypatch):
    problem = problem_of(num_views=2)
    linear = problem.linearise(random_head(problem))
    assert dense_inverse(linear) is not None
    monkeypatch.setattr(dense, "MOST_WEIGHTS", 23)  # the head has 24
    assert dense_inverse(linear) is None
    approximate = score_difficulty(linear, ekfac(linear))
    assert torch.equal(difficulty(linear, None).leverage, approximate.leverage)
    monkeypatch.setattr(dense, "MOST_WEIGHTS", 24)
    monkeypatch.setattr(dense, "MOST_WORK", 80 * 24**2 - 1)
    assert dense_inverse(linear) is None


@looped("temperature, l2", [(1.0, 1e-1), (1.0, 1e-3), (3.0, 1e-2)])
def test_estimate_of_effective_parameters_agrees_within_its_error(temperature, l2):
    problem = problem_of(
        seed=3, num_samples=400, num_features=30, num_classes=12, temperature=temperature, l2=l2
    )
    linear = problem.linearise(0.3 * random_head(problem))
    helper = preconditioner(linear)
    exact = effective_parameters(linear, dense_inverse(linear), preconditioner=helper)
    found = effective_parameters(linear, None, preconditioner=helper)
    assert exact.error == 0.0
    assert found.error == pytest.approx(found.value**0.5)  # the bound for two probes
    assert abs(found.value - exact.value) < 2.0 * found.error
    assert abs(found.value - exact.value) < 0.15 * exact.value
