"""VGG networks for small images, with batch normalisation and one linear layer.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
arXiv:1409.1556. Names in the state dict are those of RepDistiller and mdistiller, which differ from
torchvision's. Five blocks of 64, 128, 256, 512 and 512 channels; the maximum over 2x2 pixels after
the first three, after the fourth too where images are 64 pixels or more; the convolutions have
biases.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.convolutions import (
    global_average,
    initialise_convolutions,
    initialise_head,
    relu,
)

WIDTHS = (64, 128, 256, 512, 512)
NUM_CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
LARGE = 64
"""Smallest height in pixels at which the fourth block is pooled too."""


class Vgg(Classifier):
    """VGG network; weights follow torch's global seed.

    ``depth`` names the published configuration (8, 13 or 16), which counts three linear layers.

    Raises:
        ValueError: if there is no such configuration.
    """

    def __init__(self, *, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth not in NUM_CONVOLUTIONS:
            raise ValueError(f"depth must be one of {sorted(NUM_CONVOLUTIONS)}, got {depth}")
        self.arch = f"vgg{depth}"
        in_channels = (3, *WIDTHS)
        for number, count in enumerate(NUM_CONVOLUTIONS[depth]):
            layers = block(in_channels[number], WIDTHS[number], num_convolutions=count)
            self.add_module(f"block{number}", layers)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        initialise_convolutions(self)
        initialise_head(self.classifier)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, 512), bias (C,)."""
        return self.classifier

    def features(self, images: Tensor) -> Tensor:
        """Globally averaged last feature map (B, 512) of images (B, 3, H, W)."""
        maps, num_pooled = images, 4 if images.shape[2] >= LARGE else 3
        for number in range(len(WIDTHS)):
            maps = F.relu(self.get_submodule(f"block{number}")(maps), inplace=True)
            if number < num_pooled:
                maps = F.max_pool2d(maps, 2)
        return global_average(maps)


def block(in_channels: int, channels: int, *, num_convolutions: int) -> nn.Sequential:
    """3x3 convolutions, each normalised, with a ReLU between two, but none after the last.

    The numbers of the layers are those of the checkpoints.
    """
    layers: list[nn.Module] = []
    for number in range(num_convolutions):
        layers += [relu()] if number else []
        layers += [
            nn.Conv2d(in_channels if number == 0 else channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers)
