"""Inspection of a network without changing it: modules by name, outputs for trial images."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.networks.classifier import Classifier

UNFIT = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ArithmeticError)
"""Errors of networks on images, or on intermediate values, of a shape that they do not support."""


def module_at(network: nn.Module, name: str) -> nn.Module:
    """The module under a dotted name, even if an attribute of the same name hides it."""
    for part in name.split("."):
        child = network._modules[part]
        assert child is not None
        network = child
    return network


def without_module(network: nn.Module, name: str) -> nn.Module:
    """A network of the same modules and weights, with the identity in place of one module."""
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    first, _, rest = name.partition(".")
    child = network._modules[first]
    assert child is not None
    twin._modules[first] = without_module(child, rest) if rest else nn.Identity()
    return twin


def name_of(network: nn.Module, wanted: nn.Module) -> str:
    """The dotted name of a module within a network."""
    name: str = next(name for name, module in network.named_modules() if module is wanted)
    return name


def first_output(output: object) -> Tensor:
    """The logits in a network's output: alone, first of several, or under ``logits``.

    Raises:
        TypeError: if there is no tensor.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(f"it returns a {type(output).__name__}, not logits")
    return logits


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; restore modes and torch's random state afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for network in networks:
                network.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def require_image_size(model: Classifier, image_size: tuple[int, int]) -> None:
    """Reject a size (height, width) of images that the network does not accept.

    Raises:
        ConfigError: if two blank images of the size do not become two rows of features.
    """
    weight = model.head.weight
    images = torch.zeros(2, 3, *image_size, device=weight.device, dtype=weight.dtype)
    reason = "it returns no features"
    try:
        with evaluating(model):
            if model.features(images).shape == (2, model.head.in_features):
                return
    except UNFIT as error:
        reason = first_line(error)
    height, width = image_size
    raise ConfigError(
        f"{model.arch} cannot take images of {height} x {width} pixels: {reason} (expected a size "
        "that it supports). Set `prepare.resize`, or another arch."
    )


def needs_several_images(model: Classifier, image_size: tuple[int, int]) -> bool:
    """Report if the network can train on two images (height, width) at once but not on one.

    Batch normalisation cannot if it sees one value per channel, as on maps of 1 x 1 pixels. A copy
    is tried, and torch's random numbers are restored.
    """
    copied = copy.deepcopy(model).train()
    devices = [copied.head.weight.device] if copied.head.weight.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        return not _trains_on(copied, 1, image_size) and _trains_on(copied, 2, image_size)


def _trains_on(model: Classifier, count: int, image_size: tuple[int, int]) -> bool:
    weight = model.head.weight
    images = torch.zeros(count, 3, *image_size, device=weight.device, dtype=weight.dtype)
    try:
        return model.features(images).shape == (count, model.head.in_features)
    except UNFIT:
        return False


def first_line(error: BaseException) -> str:
    """First line of an error's text, at most 160 characters, for use in a message."""
    line = str(error).strip().partition("\n")[0].rstrip(". ")
    return line[:160] if line.isprintable() and line else type(error).__name__
