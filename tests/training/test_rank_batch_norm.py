"""Batch normalisation of a batch that ranks have parts of is that of the whole batch."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pipeline.models.reused_head import VectorNorm
from pipeline.runtime.ranks import ALONE, Poll, Ranks
from pipeline.training.rank_batch_norm import join_norms, joint_batch_norm
from pipeline.training.rank_batches import average_gradients
from tests.support.rank_processes import on_ranks

WORLD = 3
CHANNELS = 5
PARTS = {"even": (4, 4, 4), "uneven": (5, 1, 3), "empty": (1, 0, 0), "two of three": (3, 2, 0)}


class Alone(Ranks):
    """One process that takes the way of many."""

    @property
    def are_many(self):
        return True

    def each(self, values):
        return values[None]

    def summed(self, values):
        return values


def network(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    norm = kind(CHANNELS, dtype=dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    return norm


def example(
    kind: type[nn.Module], num_rows: int, dtype: torch.dtype
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A module, values of different spread with a mean far from 0, and a gradient."""
    torch.manual_seed(0)
    shape = (num_rows, CHANNELS, 3, 2) if kind is nn.BatchNorm2d else (num_rows, CHANNELS)
    spread = torch.linspace(0.1, 3.0, num_rows).view(-1, *[1] * (len(shape) - 1))
    values, gradient = torch.randn(shape) * spread + 2.0, torch.randn(shape)
    return network(kind, dtype), values.to(dtype), gradient.to(dtype)


def found_of(norm: nn.Module, values: torch.Tensor, gradient: torch.Tensor):
    values = values.clone().requires_grad_()
    normed = norm(values)
    normed.backward(gradient)
    return {
        "normed": normed.detach(),
        "values": values.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **{f"state.{name}": value.clone() for name, value in norm.state_dict().items()},
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str
)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.BatchNorm1d, VectorNorm])
def test_ranks_normalise_as_one_process_with_the_whole_batch(
    tmp_path, kind, name, dtype, tolerance
):
    parts = PARTS[name]
    if sum(parts) == 1 and kind is nn.BatchNorm1d:
        pytest.skip("torch has no statistics of one value")
    norm, values, gradient = example(kind, sum(parts), dtype)
    expected = found_of(copy.deepcopy(norm), values, gradient)
    ends = [sum(parts[: rank + 1]) for rank in range(WORLD)]

    def work(ranks: Ranks):
        own = slice(ends[ranks.rank] - parts[ranks.rank], ends[ranks.rank])
        join_norms(norm, ranks)
        return found_of(copy.deepcopy(norm), values[own], gradient[own])

    found = on_ranks(work, world=WORLD, folder=tmp_path)
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    for key in ("normed", "values"):
        close(torch.cat([one[key] for one in found]), expected[key])
    for key in ("weight", "bias"):  # to be summed with those of other ranks
        close(sum(one[key] for one in found), expected[key])
    for key in (key for key in expected if key.startswith("state.")):
        for one in found:
            close(one[key], expected[key])


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    values, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 3, 2, 2), (3,), (3,))
    )

    def norm(values, weight, bias):
        return joint_batch_norm(Alone(), values, None, None, weight, bias, training=True)

    assert torch.autograd.gradcheck(norm, (values, weight, bias))


def test_joined_modules_keep_names_and_are_themselves_in_evaluation():
    plain = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), network(nn.BatchNorm2d)).eval()
    joined = copy.deepcopy(plain)
    join_norms(joined, Alone())
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(joined(images), plain(images))
    assert joined.state_dict().keys() == plain.state_dict().keys()
    assert all(isinstance(one, type(other)) for one, other in zip(joined, plain, strict=True))


def test_alone_nothing_is_joined():
    norm = nn.BatchNorm2d(CHANNELS)
    join_norms(norm, ALONE)
    assert type(norm) is nn.BatchNorm2d


def test_ranks_average_gradients_that_some_of_them_lack(tmp_path):
    def work(ranks: Ranks):
        weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
        if ranks.rank == 1:
            weights[0].grad = torch.tensor([3.0, 6.0])
        average_gradients(weights, ranks)
        return {"first": weights[0].grad, "second": torch.tensor(weights[1].grad is None)}

    for found in on_ranks(work, world=WORLD, folder=tmp_path):
        assert found["first"].tolist() == [1.0, 2.0]
        assert found["second"]


def test_all_ranks_hear_of_a_flag_at_the_next_step(tmp_path):
    def work(ranks: Ranks):
        poll = Poll(ranks)
        polled = [poll.answers(step == 2 and ranks.rank == 1, step == 0) for step in range(4)]
        return {"polled": torch.tensor(polled), "last": torch.tensor(poll.last())}

    for found in on_ranks(work, world=WORLD, folder=tmp_path):
        assert found["polled"][:, 0].tolist() == [False, False, False, True]
        assert found["polled"][:, 1].tolist() == [False, True, False, False]
        assert found["last"].tolist() == [False, False]
    assert Poll(ALONE).answers(True, False) == (True, False)
