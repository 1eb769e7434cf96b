"""The architectures by name.

resnet8 ... resnet110, resnet8x4, wrn_40_2, vgg8, ShuffleV1, MobileNetV2, ...
                                the networks of RepDistiller and mdistiller, under their names
resnet8a ... resnet110a         CIFAR ResNets with option-A shortcuts
torchvision:NAME, timm:NAME     networks of these packages, freshly initialised
package.module:callable         a network from your own code
ARCH+simkdD                     any of them under a reused head of D features
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch

from pipeline.errors import ConfigError
from pipeline.models.foreign_networks import foreign_network, spelt_alike, suggestions
from pipeline.models.headed_network import HeadedNetwork, found_head
from pipeline.models.networks.cifar_resnet import CifarResNet
from pipeline.models.networks.classifier import Classifier
from pipeline.models.networks.four_stage_resnet import FourStageResNet
from pipeline.models.networks.mobilenet_v1 import MobileNetV1
from pipeline.models.networks.mobilenet_v2 import MobileNetV2
from pipeline.models.networks.projection_resnet import ProjectionResNet
from pipeline.models.networks.shufflenet_v1 import ShuffleNetV1
from pipeline.models.networks.shufflenet_v2 import ShuffleNetV2
from pipeline.models.networks.vgg import Vgg
from pipeline.models.networks.wide_resnet import WideResNet
from pipeline.models.probing import name_of
from pipeline.models.reused_head import SUFFIX, ReusedHead

DEPTHS = (8, 14, 20, 32, 44, 56, 110)
ZOO: dict[str, Callable[..., Classifier]] = {
    **{f"resnet{depth}": partial(ProjectionResNet, depth=depth) for depth in DEPTHS},
    **{f"resnet{d}x4": partial(ProjectionResNet, depth=d, wide=True) for d in (8, 32)},
    **{
        f"wrn_{depth}_{factor}": partial(WideResNet, depth=depth, factor=factor)
        for depth in (16, 40)
        for factor in (1, 2)
    },
    **{f"vgg{depth}": partial(Vgg, depth=depth) for depth in (8, 13, 16)},
    **{f"ResNet{depth}": partial(FourStageResNet, depth=depth) for depth in (18, 50)},
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "MobileNetV2": MobileNetV2,
    "MobileNetV1": MobileNetV1,
    **{f"resnet{depth}a": partial(CifarResNet, depth=depth) for depth in DEPTHS},
}


def architectures() -> tuple[str, ...]:
    """Names of the built-in architectures; `build` accepts more, by rules."""
    return tuple(ZOO)


def build(arch: str, *, num_classes: int, head: str = "") -> Classifier:
    """Build a freshly initialised network; the weights follow torch's global seed.

    Args:
        arch: a name of the zoo, torchvision:NAME, timm:NAME or package.module:callable, each also
            with +simkdD, for a reused head of D features, whose weights must be loaded afterwards.
        num_classes: classes of the head.
        head: name of the classifier within the network, to be verified; empty: search for it.

    Raises:
        ConfigError: if ``arch`` is unknown, ``num_classes`` is below 2, or there is no such head.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
    trunk, _, dim = arch.rpartition(SUFFIX)
    if trunk and dim.isascii() and dim.isdigit() and 0 < len(dim) < 6 and int(dim):
        weight = torch.zeros(num_classes, int(dim))
        model = build(trunk, num_classes=num_classes, head=head)
        return ReusedHead(model, weight, weight.new_zeros(num_classes))
    if arch in ZOO:
        return _of_zoo(arch, num_classes=num_classes, head=head)
    if ":" not in arch:
        raise ConfigError(unknown_architecture(arch))
    network = foreign_network(arch, num_classes=num_classes)
    name = found_head(network, num_classes=num_classes, arch=arch, head=head)
    return HeadedNetwork(network, head=name, arch=arch)


def _of_zoo(arch: str, *, num_classes: int, head: str) -> Classifier:
    model = ZOO[arch](num_classes=num_classes)
    name = name_of(model, model.head)
    if head not in ("", name):
        raise ConfigError(
            f"head of {arch} is {head!r} (expected {name}, its classifier). Correct it, or leave "
            "it empty."
        )
    return model


def unknown_architecture(arch: str) -> str:
    """Message that lists the close matches and every architecture."""
    alike = [*spelt_alike(arch, architectures()), *suggestions(arch)]
    close = alike or get_close_matches(arch, architectures())
    advice = f"Did you mean {' or '.join(close)}?" if close else "Choose one of them."
    names = ", ".join(architectures())
    return (
        f"architecture is unknown: {arch!r} (expected one of {names}; or torchvision:NAME, "
        f"timm:NAME, package.module:callable). {advice}"
    )
