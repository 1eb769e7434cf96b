"""Normalisation of uint8 pixels to a network's input."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Normaliser:
    """Convert (B, 3, H, W) uint8 to ``(pixels / 255 - mean) / std`` of a floating type."""

    def __init__(
        self,
        *,
        mean: Iterable[float],
        std: Iterable[float],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device
        self._dtype = dtype
        std_tensor = torch.tensor(list(std), dtype=torch.float64).view(1, 3, 1, 1)
        mean_tensor = torch.tensor(list(mean), dtype=torch.float64).view(1, 3, 1, 1)
        self._scale = (1.0 / (255.0 * std_tensor)).to(device, dtype)
        self._shift = (-mean_tensor / std_tensor).to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.to(self.device).to(self._dtype), self._scale)
