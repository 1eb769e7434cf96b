"""Normalisation of uint8 pixels to a network's input."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Normaliser:
    """Convert (B, 3, H, W) uint8 to ``(pixels / 255 - mean) / std`` of a floating type.

    Images and ``mean`` and ``std`` are of red, green and blue; ``is_bgr`` gives blue first.
    """

    def __init__(
        self,
        *,
        mean: Iterable[float],
        std: Iterable[float],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        is_bgr: bool = False,
    ) -> None:
        self.device = device
        self._is_bgr = is_bgr
        self._dtype = dtype
        std_tensor = torch.tensor(list(std), dtype=torch.float64).view(1, 3, 1, 1)
        mean_tensor = torch.tensor(list(mean), dtype=torch.float64).view(1, 3, 1, 1)
        self._scale = (1.0 / (255.0 * std_tensor)).to(device, dtype)
        self._shift = (-mean_tensor / std_tensor).to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device).to(self._dtype)
        normalised = torch.addcmul(self._shift, pixels, self._scale)
        return normalised.flip(1) if self._is_bgr else normalised
