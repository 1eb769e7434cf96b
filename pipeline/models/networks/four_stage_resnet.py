"""ResNet18 and ResNet50 for small images: the ImageNet networks with a 3x3 stem and no pooling.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1. Names in
the state dict are those of kuangliu/pytorch-cifar, as in RepDistiller and mdistiller; they differ
from torchvision's. Four stages of 64, 128, 256 and 512 channels (four times as many after each
bottleneck) at full, half, quarter and eighth resolution.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import (
    conv,
    conv_norm,
    global_average,
    initialise_convolutions,
)

WIDTHS = (64, 128, 256, 512)
NUM_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class FourStageResNet(Classifier):
    """Residual network of 18 layers, or of 50 with bottlenecks; weights follow torch's global seed.

    Raises:
        ValueError: if ``depth`` is neither 18 nor 50.
    """

    def __init__(self, *, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth not in NUM_BLOCKS:
            raise ValueError(f"depth must be 18 or 50, got {depth}")
        self.arch = f"ResNet{depth}"
        block = BasicBlock if depth == 18 else Bottleneck
        self.conv1 = conv(3, WIDTHS[0], 3)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        outputs = [WIDTHS[0], *(block.expansion * width for width in WIDTHS)]
        stages = [
            stage(block, in_channels, width, num_blocks=num_blocks)
            for in_channels, width, num_blocks in zip(
                outputs, WIDTHS, NUM_BLOCKS[depth], strict=False
            )
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(outputs[-1], num_classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 512 or 2048), bias (C,)."""
        return self.linear

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 512 or 2048) of images (B, 3, H, W)."""
        maps = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return global_average(self.layer4(self.layer3(self.layer2(self.layer1(maps)))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, width, H', W') of feature maps (B, in_channels, H, W)."""
        out = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)).add_(self.shortcut(maps)), inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution, which has the stride, between two of 1x1, around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut(in_channels, channels, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, 4 * width, H', W') of feature maps (B, in_channels, H, W)."""
        out = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)).add_(self.shortcut(maps)), inplace=True)


def shortcut(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    """The identity, or a projection if the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(*conv_norm(in_channels, channels, 1, stride=stride))


def stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, *, num_blocks: int
) -> nn.Sequential:
    """``num_blocks`` blocks, of which the first halves the resolution where the width grows."""
    channels = [in_channels] + [block.expansion * width] * num_blocks
    stride = 1 if width == WIDTHS[0] else 2
    return nn.Sequential(
        *(
            block(before, width, stride=stride if number == 0 else 1)
            for number, (before, _) in enumerate(pairwise(channels))
        )
    )
