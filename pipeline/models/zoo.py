"""The architectures, by name: resnet{depth}a is a CIFAR ResNet with option-A shortcuts."""

from difflib import get_close_matches

from pipeline.errors import ConfigError
from pipeline.models import Classifier
from pipeline.models.cifar_resnet import CifarResNet

CIFAR_RESNET_DEPTHS = {f"resnet{depth}a": depth for depth in (8, 14, 20, 32, 44, 56, 110)}


def architectures() -> tuple[str, ...]:
    """Every name that `build` knows, smallest network first."""
    return tuple(CIFAR_RESNET_DEPTHS)


def build(arch: str, *, num_classes: int) -> Classifier:
    """A freshly initialised network; the weights follow torch's global seed.

    Raises:
        ConfigError: if ``arch`` is unknown or ``num_classes`` is below 2.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
    if arch not in CIFAR_RESNET_DEPTHS:
        raise ConfigError(unknown_architecture(arch))
    return CifarResNet(depth=CIFAR_RESNET_DEPTHS[arch], num_classes=num_classes)


def unknown_architecture(arch: str) -> str:
    """One line that names the close matches and every architecture."""
    close = get_close_matches(arch, architectures())
    advice = f"Did you mean {' or '.join(close)}?" if close else "Choose one of them."
    names = ", ".join(architectures())
    return f"architecture is unknown: {arch!r} (expected one of {names}). {advice}"
