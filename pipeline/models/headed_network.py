"""Foreign networks as classifiers: the linear head is found, or named, and verified.

A head is verified by substitution: its output is bit-identical to the network's output, and the
network without it returns its input. So logits = head(features), for any weights.
"""

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.networks.classifier import Classifier
from pipeline.models.probing import (
    UNFIT,
    evaluating,
    first_line,
    first_output,
    module_at,
    without_module,
)

TRIAL_SIZES = (32, 64, 224, 256, 299, 384, 512)
"""Sides in pixels to try until a network accepts one; smaller ones cost less."""


class HeadedNetwork(Classifier):
    """Any network whose logits are one linear module of a feature vector.

    Names in the state dict are the network's own. Other outputs, such as auxiliary logits, are
    dropped. ``network`` must not be used afterwards.

    Args:
        network: images (B, 3, H, W) to logits (B, C), or to a tuple that begins with them.
        head: dotted name of the linear module, from `found_head`.
        arch: name under which `build` makes the network.
    """

    def __init__(self, network: nn.Module, *, head: str, arch: str) -> None:
        super().__init__()
        self.arch = arch
        self.head_name = head
        # The same tables as the network's: every weight keeps its name and exists once.
        self._modules = network._modules
        self._parameters = network._parameters
        self._buffers = network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        # In a tuple, so that torch does not register its modules, which are shared, twice.
        self._trunk = (without_module(network, head),)

    @property
    def head(self) -> nn.Linear:
        """The linear classifier: weight (C, D), bias (C,)."""
        head = module_at(self, self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    def features(self, images: Tensor) -> Tensor:
        """Input of the head (B, D) for images (B, 3, H, W)."""
        return first_output(self._trunk[0](images))

    def train(self, mode: bool = True) -> "HeadedNetwork":
        """Set the mode; a network that keeps some modules in another mode still does."""
        super().train(mode)
        self._trunk[0].train(mode)
        return self


def found_head(network: nn.Module, *, num_classes: int, arch: str, head: str = "") -> str:
    """Name of the linear module that gives the network's logits.

    Args:
        network: the network to inspect; it is not changed.
        num_classes: number of logits.
        arch: name of the network, for messages.
        head: the name to verify; empty: the last module that can be verified.

    Raises:
        ConfigError: if there is none, or the named module is not the head.
    """
    candidates = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes and name
    ]
    if head and head not in candidates:
        raise ConfigError(_no_candidate(network, head, candidates, num_classes, arch))
    reasons = {}
    for name in [head] if head else reversed(candidates):
        reasons[name] = _why_not(network, name)
        if not reasons[name]:
            return name
    raise ConfigError(_no_head(reasons, candidates, num_classes, arch))


def _why_not(network: nn.Module, head: str) -> str:
    """Reason why a linear module is not the network's head; empty if it is."""
    if module_at(network, head).bias is None:
        return "it has no bias"
    trunk = without_module(network, head)
    with evaluating(network, trunk):
        torch.manual_seed(0)
        failure = ""
        for side in TRIAL_SIZES:
            try:
                return _disproof(network, trunk, head, images=torch.randn(2, 3, side, side))
            except UNFIT as error:
                failure = first_line(error)
    return f"the network fails on images of every size tried, last with: {failure}"


def _disproof(network: nn.Module, trunk: nn.Module, head: str, *, images: Tensor) -> str:
    """Replace the head's output by random numbers; empty if the network returns the same."""
    module = module_at(network, head)
    assert isinstance(module, nn.Linear)
    taken: list[Tensor] = []
    given = torch.randn(len(images), module.out_features)

    def exchange(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(inputs[0])
        return given.to(output)

    handle = module.register_forward_hook(exchange)
    try:
        logits = first_output(network(images))
    finally:
        handle.remove()
    if len(taken) != 1:
        return f"it is used {len(taken)} times for a batch"
    if logits.shape != given.shape or not torch.equal(logits, given.to(logits)):
        return "its output is not the network's output"
    return _trunk_disproof(trunk, images, taken[0])


def _trunk_disproof(trunk: nn.Module, images: Tensor, taken: Tensor) -> str:
    if taken.ndim != 2:
        return f"its input is {list(taken.shape)}, not a vector for each image"
    try:
        features = first_output(trunk(images))
    except UNFIT as error:
        return f"the network does not work without it ({first_line(error)})"
    if features.shape != taken.shape or not torch.allclose(features, taken):
        return "without it the network does not return its input"
    return ""


def _no_candidate(
    network: nn.Module, head: str, candidates: list[str], num_classes: int, arch: str
) -> str:
    modules = dict(network.named_modules())
    found = "there is no such module"
    if head in modules:
        module = modules[head]
        found = f"it is a {type(module).__name__}"
        if isinstance(module, nn.Linear):
            found += f" with {module.out_features} outputs"
    return (
        f"head of {arch} is {head!r} and {found} (expected {_one_of(candidates, num_classes)}). "
        "Correct it, or leave it empty."
    )


def _no_head(reasons: dict[str, str], candidates: list[str], num_classes: int, arch: str) -> str:
    if not candidates:
        return (
            f"{arch} has no linear module with {num_classes} outputs (expected one that gives its "
            "logits). Give it a torch.nn.Linear as its last module."
        )
    listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    return (
        f"{arch} has no verified head: {listed} (expected one whose output is the logits, of "
        f"{_one_of(candidates, num_classes)}). Name another head, or choose another network."
    )


def _one_of(candidates: list[str], num_classes: int) -> str:
    if not candidates:
        return f"a linear module with {num_classes} outputs, and it has none"
    return ", ".join(candidates[:5]) + (" or another" if len(candidates) > 5 else "")
