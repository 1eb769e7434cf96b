"""Wide residual networks of depth 6n+4 for small images, pre-activated.

Zagoruyko and Komodakis 2016, "Wide Residual Networks", arXiv:1605.07146, without dropout. Names in
the state dict are those of RepDistiller and mdistiller. Three stages of n blocks, 16k, 32k and 64k
channels wide, at full, half and quarter resolution.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import conv, global_average, initialise_convolutions

STEM = 16


class WideResNet(Classifier):
    """Wide residual network of ``depth`` layers; weights follow torch's global seed.

    Args:
        depth: 6n + 4 with n >= 1.
        factor: the paper's k, the width as a multiple of the thin network's.
        num_classes: classes of the head.

    Raises:
        ValueError: if ``depth`` is not 6n + 4.
    """

    def __init__(self, *, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {depth}")
        self.arch = f"wrn_{depth}_{factor}"
        num_blocks = (depth - 4) // 6
        widths = [factor * STEM * scale for scale in (1, 2, 4)]
        self.conv1 = conv(3, STEM, 3)
        self.block1 = Stage(STEM, widths[0], num_blocks=num_blocks, stride=1)
        self.block2 = Stage(widths[0], widths[1], num_blocks=num_blocks, stride=2)
        self.block3 = Stage(widths[1], widths[2], num_blocks=num_blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 64k), bias (C,)."""
        return self.fc

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 64k) of images (B, 3, H, W)."""
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        return global_average(F.relu(self.bn1(maps), inplace=True))


class Stage(nn.Module):
    """``num_blocks`` blocks, of which the first changes width and resolution."""

    def __init__(self, in_channels: int, channels: int, *, num_blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(in_channels, channels, stride=stride)
        rest = (Block(channels, channels, stride=1) for _ in range(num_blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        out: Tensor = self.layer(maps)
        return out


class Block(nn.Module):
    """Two 3x3 convolutions, each after its normalisation and ReLU, around a shortcut."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut: nn.Conv2d | None = None  # named as in the checkpoints
        if in_channels != channels:
            self.convShortcut = conv(in_channels, channels, 1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        active = F.relu(self.bn1(maps), inplace=True)
        # As in the original, a projection takes the activated maps, the identity the input maps.
        shortcut = maps if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return out.add_(shortcut)
