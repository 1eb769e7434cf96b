"""ShuffleNet for small images: grouped 1x1 convolutions with shuffled channels.

Zhang et al. 2017, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", arXiv:1707.01083, with 3 groups, a 1x1 stem and no pooling. Names in the state dict are
those of RepDistiller and mdistiller. Three stages of 240, 480 and 960 channels at half, quarter
and eighth resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import conv, global_average, shuffle_channels

STEM, WIDTHS, NUM_BLOCKS, GROUPS = 24, (240, 480, 960), (4, 8, 4), 3


class ShuffleNetV1(Classifier):
    """ShuffleNet; weights are torch's own, from its global seed."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.arch = "ShuffleV1"
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = stage(STEM, WIDTHS[0], num_blocks=NUM_BLOCKS[0])
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], num_blocks=NUM_BLOCKS[1])
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], num_blocks=NUM_BLOCKS[2])
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 960), bias (C,)."""
        return self.linear

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 960) of images (B, 3, H, W)."""
        maps = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return global_average(self.layer3(self.layer2(self.layer1(maps))))


class Unit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 of every channel alone, grouped 1x1, around a shortcut.

    A unit that halves the resolution appends the averaged maps instead of adding them.
    """

    def __init__(self, in_channels: int, channels: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        out = channels - in_channels if halves else channels
        middle = out // 4
        self.groups = 1 if in_channels == STEM else GROUPS  # the stem has too few to be grouped
        self.conv1 = conv(in_channels, middle, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, 3, stride=2 if halves else 1, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, out, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(out)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        out = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        out = shuffle_channels(out, groups=self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if not self.halves:
            return F.relu(out.add_(maps), inplace=True)
        averaged = F.avg_pool2d(maps, 3, stride=2, padding=1)
        return F.relu(torch.cat([out, averaged], dim=1), inplace=True)


def stage(in_channels: int, channels: int, *, num_blocks: int) -> nn.Sequential:
    """``num_blocks`` units, of which the first halves the resolution."""
    rest = (Unit(channels, channels, halves=False) for _ in range(num_blocks - 1))
    return nn.Sequential(Unit(in_channels, channels, halves=True), *rest)
