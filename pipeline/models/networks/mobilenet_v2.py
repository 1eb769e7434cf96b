"""MobileNet V2 of half width for small images: inverted residuals with linear ends.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, as
in RepDistiller and mdistiller, with their names in the state dict: width 0.5, ReLU in place of
ReLU6, the first block expands by a convolution too, only the stem and three of the stages halve the
resolution, no dropout.
"""

from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import (
    conv_norm,
    global_average,
    initialise_convolutions,
    initialise_head,
    relu,
)

STEM, LAST = 16, 1280
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
"""Expansion, channels, number of blocks and stride of the first block, for each stage."""


class MobileNetV2(Classifier):
    """MobileNet V2 of half width; weights follow torch's global seed."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.arch = "MobileNetV2"
        self.conv1 = nn.Sequential(*conv_norm(3, STEM, 3, stride=2), relu())
        in_channels = (STEM, *(channels for _, channels, _, _ in STAGES))
        self.blocks = nn.Sequential(
            *(
                stage(before, *settings)
                for before, settings in zip(in_channels, STAGES, strict=False)
            )
        )
        self.conv2 = nn.Sequential(*conv_norm(in_channels[-1], LAST, 1), relu())
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        initialise_convolutions(self)
        initialise_head(self.head)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 1280), bias (C,)."""
        head = self.classifier[0]
        assert isinstance(head, nn.Linear)
        return head

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 1280) of images (B, 3, H, W)."""
        return global_average(self.conv2(self.blocks(self.conv1(images))))


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 of every channel alone, 1x1 to few; a shortcut between equals."""

    def __init__(self, in_channels: int, channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        middle = expansion * in_channels
        self.has_shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *conv_norm(in_channels, middle, 1),
            relu(),
            *conv_norm(middle, middle, 3, stride=stride, groups=middle),
            relu(),
            *conv_norm(middle, channels, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, channels, H', W') of feature maps (B, in_channels, H, W)."""
        out: Tensor = self.conv(maps)
        return out.add_(maps) if self.has_shortcut else out


def stage(
    in_channels: int, expansion: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """``num_blocks`` blocks, of which the first changes width and resolution."""
    first = InvertedResidual(in_channels, channels, expansion=expansion, stride=stride)
    rest = (
        InvertedResidual(channels, channels, expansion=expansion, stride=1)
        for _ in range(num_blocks - 1)
    )
    return nn.Sequential(first, *rest)
