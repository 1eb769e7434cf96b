"""Orders of a head's classes: how often logits are right in an order, and the best order."""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Order: TypeAlias = NDArray[np.int64]
"""Column of the logits for each class, (C,)."""


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the label is on top, 0 where it is not; a tie gives each of the k on top 1 / k."""
    is_top = logits == logits.amax(dim=1, keepdim=True)
    own = is_top.gather(1, labels[:, None]).squeeze(1)
    return own.double() / is_top.sum(dim=1)


def best_order(logits: Tensor, labels: Tensor) -> Order:
    """The order of the classes with which the logits are right most often, (C,)."""
    order: Order = np.arange(logits.shape[1])
    named = torch.cat([labels, logits.argmax(dim=1)])
    found, places = torch.unique(named, return_inverse=True)
    counts = 1e-3 * torch.eye(len(found), dtype=torch.float64)  # as it is, where nothing is known
    pairs = places[: len(labels)], places[len(labels) :]
    counts.index_put_(pairs, torch.tensor(1.0).double(), accumulate=True)
    kept = found.numpy()  # classes that do not occur keep their place
    order[kept] = kept[linear_sum_assignment(-counts.numpy())[1]]
    return order


def fitted_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Hits of each half of the images with the best order for the other half."""
    hits = torch.zeros(len(labels), dtype=torch.float64)
    halves = _halves(labels)
    for half in (0, 1):
        order = best_order(logits[halves != half], labels[halves != half])
        mine = halves == half
        hits[mine] = hits_of(logits[mine][:, order], labels[mine])
    return hits


def _halves(labels: Tensor) -> Tensor:
    """0 and 1 in turn within each class."""
    halves = torch.zeros_like(labels)
    for label in range(int(labels.max()) + 1):
        own = labels == label
        halves[own] = torch.arange(int(own.sum())) % 2
    return halves
