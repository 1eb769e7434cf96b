"""Low-rank class blocks: the same approximation as whole blocks, for many classes."""

import pytest
import torch
from torch.testing import assert_close

from pipeline.methods.head import preconditioner as module
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient
from pipeline.methods.head.preconditioner import (
    ClassBlocks,
    LowRankBlocks,
    low_rank_blocks,
    preconditioner,
)
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import fit, solve
from tests.support.head_problems import dense_hessian, problem_of, random_head


def many_classes(*, l2=1e-3, products=torch.float64):
    """Three samples of each of 60 classes, 40 features with a decaying spectrum."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 41).double() ** -0.7
    centres = 3.0 * spectrum * torch.randn(60, 40, generator=generator).double()
    labels = torch.arange(60).repeat(3)
    noise = torch.randn(180, 40, generator=generator).double()
    features = 5.0 * (centres[labels] + 0.5 * spectrum * noise)
    problem = HeadProblem(features=features[None], labels=labels, l2=l2, products=products)
    return problem, fit(problem, start=torch.zeros(60, 41), gtol=1e-6).linear


def test_full_rank_blocks_are_the_diagonal_blocks_of_the_hessian():
    problem = problem_of(temperature=4.0, num_views=2, regularise_bias=True)
    weight = random_head(problem)
    blocks = low_rank_blocks(problem.linearise(weight), rank=80)
    hessian = dense_hessian(problem, weight).reshape(4, 6, 4, 6)
    for label in range(4):
        sides = torch.zeros(6, 4, 6).double()
        sides[:, label] = torch.eye(6)
        found = blocks.inverse(sides)[:, label]
        assert_close(found, torch.linalg.inv(hessian[label, :, label]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_blocks_are_the_largest_rows_and_a_mean_of_the_others(rank):
    problem = problem_of(regularise_bias=True)
    weight = random_head(problem)
    inputs = torch.cat([problem.features[0], torch.ones(40, 1)], dim=1)
    probs = torch.softmax(inputs @ weight.T, dim=1)
    weights, mean = probs * (1 - probs), inputs.T @ inputs / 40
    side = random_head(problem, seed=9)
    found = low_rank_blocks(problem.linearise(weight), rank=rank).inverse(side)
    for label in range(4):
        own = weights[:, label]
        top = own.argsort(descending=True)[:rank]
        block = (inputs[top] * own[top, None]).T @ inputs[top] / 40
        rest = (own.sum() - own[top].sum()) / 40
        block = block + rest * mean + problem.l2 * torch.eye(6).double()
        assert_close(found[label], torch.linalg.solve(block, side[label]), rtol=1e-9, atol=1e-11)


def test_several_right_sides_are_solved_alike():
    _, linear = many_classes()
    blocks = low_rank_blocks(linear, rank=8)
    sides = torch.randn(3, 60, 41, generator=torch.Generator().manual_seed(1)).double()
    assert_close(blocks.inverse(sides)[1], blocks.inverse(sides[1]))


@pytest.mark.parametrize("products", [torch.float64, torch.float32])
def test_they_solve_to_the_same_solution_with_fewer_products_than_ekfac(products, monkeypatch):
    monkeypatch.setattr(module, "ROUGH_BYTES", 0)
    _, linear = many_classes(products=products)
    heldout = torch.randn(50, 40, generator=torch.Generator().manual_seed(2)).double()
    right_side = heldout_gradient(linear.weight, heldout, torch.arange(50))
    blocks = solve(linear, right_side, preconditioner=low_rank_blocks(linear, rank=16), rtol=1e-6)
    kronecker = solve(linear, right_side, preconditioner=ekfac(linear), rtol=1e-6)
    assert_close(blocks.solution, kronecker.solution, rtol=1e-4, atol=1e-4)
    assert blocks.iterations < 0.6 * kronecker.iterations


@pytest.mark.parametrize(("l2", "dtype"), [(1e-1, torch.float32), (1e-9, torch.float64)])
def test_inverses_are_rounded_only_where_l2_is_resolved(l2, dtype, monkeypatch):
    monkeypatch.setattr(module, "ROUGH_BYTES", 0)
    problem, linear = many_classes()
    problem = HeadProblem(features=problem.features, labels=problem.labels, l2=l2)
    assert low_rank_blocks(problem.linearise(linear.weight), rank=4).rows.dtype == dtype


def test_the_form_follows_the_size(monkeypatch):
    _, linear = many_classes()
    assert isinstance(preconditioner(linear), ClassBlocks)
    monkeypatch.setattr(module, "WIDE", 10)
    assert isinstance(preconditioner(linear), LowRankBlocks)  # 41^2 > 4 x 180
    monkeypatch.setattr(module, "WIDE", 256)
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 60 * 41**2 - 1)
    assert isinstance(preconditioner(linear), LowRankBlocks)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * 60 * 41 * module.FEWEST_ROWS_OF_A_BLOCK - 1)
    assert isinstance(preconditioner(linear), type(ekfac(linear)))
