"""A head is compared with a guess that ignores the image."""

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.artefacts.scores import is_no_gain
from pipeline.influence.guess import gains_over_guess, mean_and_error
from pipeline.influence.inputs import Target


def target_of(labels, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, len(labels), 3, generator=generator).double()
    return Target(features=features, labels=labels)


def test_a_head_of_zeros_gains_nothing_where_classes_are_equal():
    labels = torch.arange(4).repeat(10)
    gains = gains_over_guess(target_of(labels), torch.zeros(4, 4).double(), labels)
    assert torch.allclose(gains, torch.zeros(40).double(), atol=1e-12)
    assert is_no_gain(*mean_and_error(gains))


def test_the_gain_is_over_the_better_of_two_guesses():
    training = torch.tensor([0] * 6 + [1] * 2)  # frequencies 7/11, 3/11, 1/11
    usual, odd = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, 2])
    head = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()

    def own(target):
        inputs = torch.cat([target.features[0], torch.ones(len(target), 1)], dim=1)
        return F.cross_entropy(inputs @ head.T, target.labels, reduction="none")

    found = gains_over_guess(target_of(usual), head, training)
    expected = torch.tensor([math.log(11 / 7)] * 3 + [math.log(11 / 3)]).double()
    assert torch.allclose(found, expected - own(target_of(usual)))
    found = gains_over_guess(target_of(odd), head, training)
    assert torch.allclose(found, math.log(3) - own(target_of(odd)))


def test_a_gain_is_clear_beyond_two_errors():
    gain, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    assert gain == 2.5
    assert error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert not is_no_gain(gain, error)
    assert is_no_gain(gain, gain / 2)
    assert is_no_gain(-1.0, 0.1)
    assert mean_and_error(torch.tensor([0.5]).double()) == (0.5, 0.0)
