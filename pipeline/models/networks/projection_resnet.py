"""Residual networks of depth 6n+2 for small images, with projections where the shape changes.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2 with
option B. Names in the state dict are those of RepDistiller and mdistiller, so their checkpoints
load. Three stages of n blocks at full, half and quarter resolution, of 16, 32 and 64 channels
(64, 128 and 256 in the "x4" networks, after a stem of 32).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import (
    conv,
    conv_norm,
    global_average,
    initialise_convolutions,
)


class ProjectionResNet(Classifier):
    """Residual network of ``depth`` layers; weights follow torch's global seed.

    Args:
        depth: 6n + 2 with n >= 1.
        num_classes: classes of the head.
        wide: True for the network of four times the width.

    Raises:
        ValueError: if ``depth`` is not 6n + 2.
    """

    def __init__(self, *, depth: int, num_classes: int, wide: bool = False) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        self.arch = f"resnet{depth}x4" if wide else f"resnet{depth}"
        stem, *widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
        num_blocks = (depth - 2) // 6
        self.conv1 = conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(stem, widths[0], num_blocks=num_blocks, stride=1)
        self.layer2 = stage(widths[0], widths[1], num_blocks=num_blocks, stride=2)
        self.layer3 = stage(widths[1], widths[2], num_blocks=num_blocks, stride=2)
        self.fc = nn.Linear(widths[2], num_classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 64 or 256), bias (C,)."""
        return self.fc

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 64 or 256) of images (B, 3, H, W)."""
        maps = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return global_average(self.layer3(self.layer2(self.layer1(maps))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which projects where the shape changes."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(*conv_norm(in_channels, channels, 1, stride=stride))

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        out = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)).add_(shortcut), inplace=True)


def stage(in_channels: int, channels: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    """``num_blocks`` blocks, of which the first changes width and resolution."""
    first = BasicBlock(in_channels, channels, stride=stride)
    rest = (BasicBlock(channels, channels, stride=1) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)
