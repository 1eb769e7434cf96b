"""Parts of the convolutional networks: layers, pooling, shuffling, initial weights."""

from torch import Tensor, nn


def conv(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; no bias, batch normalisation follows."""
    return nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def conv_norm(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution and its batch normalisation, as two entries of a Sequential."""
    convolution = conv(in_channels, channels, kernel, stride=stride, groups=groups)
    return [convolution, nn.BatchNorm2d(channels)]


def relu() -> nn.ReLU:
    """An in-place ReLU, safe after batch normalisation, which keeps its input for backward."""
    return nn.ReLU(inplace=True)


def global_average(maps: Tensor) -> Tensor:
    """Mean over the pixels: (B, C, H, W) to (B, C)."""
    return maps.mean(dim=(2, 3))


def shuffle_channels(maps: Tensor, *, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups: channel j of group g goes to j * groups + g.

    Zhang et al. 2017, arXiv:1707.01083, section 3.1. The result is channels-last in memory if
    channels move.
    """
    batch, channels, height, width = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
    return pixels.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def initialise_convolutions(network: nn.Module) -> None:
    """Normal weights of variance 2 / (kernel area * output channels), no bias.

    He et al. 2015, arXiv:1502.01852, in the form that preserves the gradient's variance.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_head(head: nn.Linear) -> None:
    """Normal weights of standard deviation 0.01, no bias."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
