"""Comparison of a head with a guess that ignores the image.

Scores at a head that is no better than a guess rank the samples by noise.

Shapes: M samples of the target, N scored samples, C classes.
"""

import math

import torch
from torch import Tensor

from pipeline.influence.inputs import Target


def gains_over_guess(target: Target, weight: Tensor, labels: Tensor) -> Tensor:
    """Loss of the better of two guesses minus the head's, of every target sample, (M,) float64.

    One guess gives every class 1 / C. The other gives class c its frequency (n_c + 1) / (N + C).

    Args:
        target: samples that the head is not fitted to.
        weight: W, (C, D + 1).
        labels: class ids of the samples that the head is fitted to, (N,) int64.
    """
    num_classes = len(weight)
    counts = torch.bincount(labels, minlength=num_classes).double() + 1.0
    by_frequency = -(counts / counts.sum()).log()[target.labels]
    uniform = torch.full_like(by_frequency, math.log(num_classes))
    guess = min(by_frequency, uniform, key=lambda losses: float(losses.mean()))
    return guess - target.losses(weight)


def mean_and_error(gains: Tensor) -> tuple[float, float]:
    """Mean of paired differences and its standard error; the error of one sample is 0."""
    error = float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return float(gains.mean()), error
