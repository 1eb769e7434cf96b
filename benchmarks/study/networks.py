"""Teachers that see blurred images, for `configs/studies/teachers.toml`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.zoo import build

SIGMA = 1.5
"""Standard deviation of the blur, in pixels."""
_REACH = 4


class Blur(nn.Module):
    """Gaussian blur of every channel, with mirrored edges."""

    def __init__(self) -> None:
        super().__init__()
        places = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
        weights = torch.exp(-(places**2) / (2 * SIGMA**2))
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), blurred."""
        weights = self.get_buffer("weights").to(images.dtype)
        rows = weights.view(1, 1, -1, 1).expand(3, 1, -1, 1)
        padded = F.pad(images, (_REACH,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(padded, rows, groups=3), rows.transpose(2, 3), groups=3)


def blurred_resnet20a(num_classes: int) -> nn.Module:
    """Build a resnet20a that blurs its images first."""
    return nn.Sequential(Blur(), build("resnet20a", num_classes=num_classes))
