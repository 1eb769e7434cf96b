"""The oracle holds every sample's vector: autograd of its losses, a dense EK-FAC matrix."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.parameter_change import undistil_order
from pipeline.methods.head.solver import fit
from tests.support.head_problems import problem_of, random_head


def distilled_problem(**settings):
    """Every sample is distilled, from a teacher that is often wrong."""
    num_samples = settings.setdefault("num_samples", 40)
    return problem_of(distilled=torch.ones(num_samples).double(), **settings)


def at_minimum(problem):
    """(linearisation, EK-FAC) of the fitted head."""
    found = fit(problem, start=torch.zeros_like(random_head(problem)))
    linear = problem.linearise(found.weight)
    return linear, ekfac(linear)


def losses_of_swaps(problem, weight):
    """Loss of every sample by its soft label minus that by its hard one, (N,)."""
    logits = problem.features @ weight[:, :-1].T + weight[:, -1]
    log_p = F.log_softmax(logits / problem.temperature, dim=2)
    soft = F.kl_div(log_p, problem.soft_labels, reduction="none").sum(dim=2)
    labels = problem.labels.expand(problem.num_views, -1)
    hard = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return problem.kd_weight * (problem.temperature**2 * soft - hard).mean(dim=0)


def dense_changes(linear, factors):
    """dW_i of every sample, (N, C (D + 1)): what its hard label does to one dense Newton step."""
    problem = linear.problem
    gradients = torch.func.jacrev(lambda w: losses_of_swaps(problem, w))(linear.weight).flatten(1)
    basis = torch.kron(factors.class_basis, factors.input_basis)
    hessian = basis @ torch.diag(factors.eigenvalues.flatten() + factors.l2) @ basis.T
    return torch.linalg.solve(hessian, gradients.T).T / problem.num_samples


def brute_force(changes):
    """Places by the definition: every step tries every sample that is left."""
    places, total = torch.zeros(len(changes), dtype=torch.int64), torch.zeros_like(changes[0])
    left = list(range(len(changes)))
    for place in range(len(changes)):
        best = min(left, key=lambda i: float((total + changes[i]).norm()))
        left.remove(best)
        places[best], total = place, total + changes[best]
    return places


def norms(changes, places):
    """|| sum of dW_i || after each place, (N,)."""
    return changes[places.argsort()].cumsum(dim=0).norm(dim=1)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_at_a_time_is_the_greedy_order_of_dense_vectors(num_views, temperature, seed):
    problem = distilled_problem(seed=seed, num_views=num_views, temperature=temperature)
    linear, factors = at_minimum(problem)
    expected = brute_force(dense_changes(linear, factors))
    assert torch.equal(undistil_order(linear, factors=factors, block=1), expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_come_close_to_the_greedy_order_and_far_below_random_sets(seed):
    problem = distilled_problem(seed=seed, num_samples=400, num_features=10, rows_per_chunk=400)
    linear, factors = at_minimum(problem)
    changes = dense_changes(linear, factors)
    tenths = slice(39, None, 40)
    greedy, blocks = (
        norms(changes, undistil_order(linear, factors=factors, block=block))[tenths]
        for block in (1, None)
    )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(400, generator=generator) for _ in range(20)]
    drawn = torch.stack([norms(changes, order)[tenths] for order in orders]).mean(dim=0)
    # Measured: 1.49, 1.11 and 0.31; ordered by length, so without cancelling, 0.69 at a half.
    assert (blocks <= 1.7 * greedy).all()
    assert (blocks[4:] <= 1.15 * greedy[4:]).all()
    assert (blocks[:5] <= 0.4 * drawn[:5]).all()


@pytest.mark.parametrize("block", [1, 7, 40, 1000, None])
def test_the_order_is_a_permutation_and_every_size_of_block_works(block):
    linear, factors = at_minimum(distilled_problem())
    places = undistil_order(linear, factors=factors, block=block)
    assert torch.equal(places.sort().values, torch.arange(40))


def test_a_block_of_all_orders_by_the_length_of_each_change():
    linear, factors = at_minimum(distilled_problem(num_views=2))
    places = undistil_order(linear, factors=factors, block=40)
    lengths = dense_changes(linear, factors).norm(dim=1)
    assert torch.equal(places, lengths.argsort().argsort())


def test_chunks_do_not_change_the_order_and_permuted_samples_permute_it():
    problem = distilled_problem(num_views=2)
    linear, factors = at_minimum(problem)
    expected = undistil_order(linear, factors=factors, block=3)
    whole = dataclasses.replace(problem, rows_per_chunk=1000).linearise(linear.weight)
    assert torch.equal(undistil_order(whole, factors=factors, block=3), expected)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(
        problem,
        features=problem.features[:, order],
        labels=problem.labels[order],
        soft_labels=problem.soft_labels[:, order],
    ).linearise(linear.weight)
    assert torch.equal(undistil_order(moved, factors=factors, block=3), expected[order])


def test_a_head_that_is_fitted_again_moves_less_than_with_random_samples():
    problem = distilled_problem(seed=5, num_samples=200)
    linear, factors = at_minimum(problem)
    first = undistil_order(linear, factors=factors) < 100
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(200, generator=generator) < 100 for _ in range(10)]

    def moved(hard):
        fewer = dataclasses.replace(problem, distilled=(~hard).double())
        return float((fit(fewer, start=linear.weight).weight - linear.weight).norm())

    assert moved(first) < 0.25 * min(map(moved, drawn))


def test_a_problem_without_soft_labels_and_empty_blocks_are_rejected():
    linear, factors = at_minimum(distilled_problem())
    with pytest.raises(ValueError, match=r"block .*1"):
        undistil_order(linear, factors=factors, block=0)
    hard = dataclasses.replace(linear.problem, soft_labels=None, distilled=None, kd_weight=0.0)
    with pytest.raises(ValueError, match="soft_labels must be set"):
        undistil_order(hard.linearise(linear.weight), factors=factors)
