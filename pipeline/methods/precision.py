"""The floating type that sums and logarithms are taken in."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are: what a half type would round away."""
    return values if values.dtype == torch.float64 else values.float()
