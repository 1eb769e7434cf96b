"""MobileNet for ImageNet: 3x3 convolutions of every channel alone, then 1x1 over the channels.

Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", arXiv:1704.04861, of width 1. Names in the state dict are those of mdistiller.
Images of 224 pixels become 7 x 7 maps of 1024 channels; other sizes work too.
"""

from itertools import pairwise

from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import conv_norm, global_average, relu

WIDTHS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)


class MobileNetV1(Classifier):
    """MobileNet; weights are torch's own, from its global seed."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.arch = "MobileNetV1"
        stem = nn.Sequential(*conv_norm(3, WIDTHS[0], 3, stride=2), relu())
        self.model = nn.Sequential(
            stem, *(separable(*widths, number=n) for n, widths in enumerate(pairwise(WIDTHS)))
        )
        self.fc = nn.Linear(WIDTHS[-1], num_classes)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 1024), bias (C,)."""
        return self.fc

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 1024) of images (B, 3, H, W)."""
        return global_average(self.model(images))


def separable(in_channels: int, channels: int, *, number: int) -> nn.Sequential:
    """Separable convolution; halves the resolution where the width grows, except in the first."""
    stride = 2 if number > 0 and channels > in_channels else 1
    return nn.Sequential(
        *conv_norm(in_channels, in_channels, 3, stride=stride, groups=in_channels),
        relu(),
        *conv_norm(in_channels, channels, 1),
        relu(),
    )
