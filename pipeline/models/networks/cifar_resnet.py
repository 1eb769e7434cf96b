"""Residual networks of depth 6n+2 for small images, with parameter-free shortcuts.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2,
option A. Names in the state dict are those of akamaster/pytorch_resnet_cifar10, so its
checkpoints load. Three stages of n blocks, 16, 32 and 64 channels wide, at full, half and
quarter resolution; 64 features; RGB images of 8 x 8 pixels or more.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier

WIDTHS = (16, 32, 64)


class CifarResNet(Classifier):
    """Residual network of ``depth`` layers; weights He-initialised from torch's global seed.

    Raises:
        ValueError: if ``depth`` is not 6n + 2 with n >= 1.
    """

    def __init__(self, *, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
        self.arch = f"resnet{depth}a"
        num_blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, WIDTHS[0], stride=1)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = stage(WIDTHS[0], WIDTHS[0], num_blocks=num_blocks)
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], num_blocks=num_blocks)
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], num_blocks=num_blocks)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        self.apply(initialise)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 64), bias (C,)."""
        return self.linear

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 64) of images (B, 3, H, W)."""
        maps: Tensor = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return maps.mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; halves the resolution where the width grows."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.changes_shape = in_channels != channels
        self.channels = channels
        self.conv1 = conv3x3(in_channels, channels, stride=2 if self.changes_shape else 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        shortcut = option_a_shortcut(maps, channels=self.channels) if self.changes_shape else maps
        out: Tensor = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        out = self.bn2(self.conv2(out))
        # In place is safe: batch normalisation keeps its input for backward, not its output.
        return F.relu(out.add_(shortcut), inplace=True)


def option_a_shortcut(maps: Tensor, *, channels: int) -> Tensor:
    """Every second pixel, zero channels added evenly on both sides: (B, channels, H/2, W/2).

    H and W round up. One copy, and the memory format of ``maps`` is kept: the slice is a view.
    """
    side = (channels - maps.shape[1]) // 2
    return F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


def stage(in_channels: int, channels: int, *, num_blocks: int) -> nn.Sequential:
    """``num_blocks`` blocks, the first of which goes from ``in_channels`` to ``channels``."""
    widths = [in_channels] + [channels] * (num_blocks - 1)
    return nn.Sequential(*(BasicBlock(width, channels) for width in widths))


def conv3x3(in_channels: int, channels: int, *, stride: int) -> nn.Conv2d:
    """A padded 3x3 convolution without bias; the batch normalisation after it has one."""
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def initialise(module: nn.Module) -> None:
    """He initialisation of convolutions and head (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
