"""The floating type of sums and logarithms."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half types to float32 and keep float32 and float64, to limit rounding."""
    return values if values.dtype == torch.float64 else values.float()
