"""ShuffleNet V2 for small images: half of the channels pass every unit unchanged.

Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
arXiv:1807.11164, of size 1, with a 1x1 stem and no pooling. Names in the state dict are those of
RepDistiller and mdistiller. Three stages of 116, 232 and 464 channels at half, quarter and eighth
resolution, then 1024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import conv, global_average, shuffle_channels

STEM, WIDTHS, LAST = 24, (116, 232, 464), 1024
NUM_UNITS = (3, 7, 3)
"""Units of each stage after the one that halves the resolution."""


class ShuffleNetV2(Classifier):
    """ShuffleNet V2; weights are torch's own, from its global seed."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.arch = "ShuffleV2"
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = stage(STEM, WIDTHS[0], num_units=NUM_UNITS[0])
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], num_units=NUM_UNITS[1])
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], num_units=NUM_UNITS[2])
        self.conv2 = conv(WIDTHS[2], LAST, 1)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 1024), bias (C,)."""
        return self.linear

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 1024) of images (B, 3, H, W)."""
        maps = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return global_average(F.relu(self.bn2(self.conv2(maps)), inplace=True))


class Unit(nn.Module):
    """The second half of the channels goes 1x1, 3x3 of every channel alone, 1x1; then shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H, W) of feature maps of the same shape."""
        kept, out = maps.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)), inplace=True)
        return shuffle_channels(torch.cat([kept, out], dim=1), groups=2)


class DownUnit(nn.Module):
    """Halves the resolution: all channels go through two branches, a half of the output each."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H/2, W/2) of feature maps (B, in_channels, H, W)."""
        left = self.bn1(self.conv1(maps))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(maps)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return shuffle_channels(torch.cat([left, right], dim=1), groups=2)


def stage(in_channels: int, channels: int, *, num_units: int) -> nn.Sequential:
    """A unit that halves the resolution, then ``num_units`` that keep it."""
    return nn.Sequential(
        DownUnit(in_channels, channels), *(Unit(channels) for _ in range(num_units))
    )
