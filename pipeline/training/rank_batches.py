"""A batch that is divided among several ranks, and the network that they train together.

For a loss that is a mean over rows, each rank computes its own mean, weighted by its rows. A loss
that compares the rows of a batch is computed on the whole batch, with the same result on every
rank. Gradients are averaged over the ranks during the backward pass (`DistributedDataParallel`).

Shapes: B rows of the batch over all ranks, C classes, D features.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.supervision import Batch
from pipeline.methods.precision import at_least_float32
from pipeline.models.headed_network import HeadedNetwork
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.ranks import Ranks
from pipeline.training.rank_batch_norm import join_norms
from pipeline.training.student_loss import Outputs

Forward: TypeAlias = Callable[[Classifier, Tensor], Outputs]


class JointNetwork(nn.Module):
    """A network with the same weights on every rank, and other images on each.

    Args:
        network: network on its device; all ranks take the weights of the first one.
        forward: function from the network and images to outputs.
        ranks: the ranks; all must make the same calls.
    """

    def __init__(self, network: Classifier, forward: Forward, ranks: Ranks) -> None:
        super().__init__()
        self._inner: nn.Module = _Shown(network, forward)
        if ranks.are_many:
            join_norms(network, ranks)
            self._inner = DistributedDataParallel(
                self._inner,
                find_unused_parameters=_may_idle(network),
                **_without_buffers(),
            )

    def forward(self, images: Tensor, *, is_last: bool) -> Outputs:
        """Outputs for this rank's images; gradients are averaged after the last batch."""
        if isinstance(self._inner, DistributedDataParallel):
            self._inner.require_backward_grad_sync = is_last
        logits, features = self._inner(images)
        return Outputs(logits=logits, features=features)


class _Shown(nn.Module):
    def __init__(self, network: Classifier, forward: Forward) -> None:
        super().__init__()
        self.network = network
        self._forward = forward

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._forward(self.network, images)
        return outputs.logits, outputs.features


def _without_buffers() -> dict[str, Any]:
    """Option to not send buffers, which are equal on all ranks; torch 2.15 renamed it."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


def _may_idle(network: nn.Module) -> bool:
    """True if some weights may have no gradient, such as auxiliary heads of foreign networks."""
    return any(isinstance(module, HeadedNetwork) for module in network.modules())


def whole_batch(
    outputs: Outputs, batch: Batch, *, num_rows: int, ranks: Ranks
) -> tuple[Outputs, Batch]:
    """Outputs and supervision of all ranks' rows, without the images.

    Args:
        outputs: outputs of this rank's rows.
        batch: this rank's `Ranks.part` of the batch.
        num_rows: B
        ranks: the ranks; all must call this function.
    """
    device = outputs.logits.device
    tensors = (batch.labels, batch.indices, batch.soft_labels, batch.selected, batch.features)
    known = [None if tensor is None else tensor.to(device) for tensor in tensors]
    packed = ranks.gathered(_as_bytes(t for t in known if t is not None), total=num_rows)
    labels, indices, soft_labels, selected, features = _from_bytes(packed, known)
    assert labels is not None
    assert indices is not None
    gathered = Outputs(
        logits=_Gathered.apply(at_least_float32(outputs.logits), num_rows, ranks),
        features=_Gathered.apply(at_least_float32(outputs.features), num_rows, ranks),
    )
    whole = replace(
        batch,
        labels=labels,
        indices=indices,
        soft_labels=soft_labels,
        selected=selected,
        features=features,
    )
    return gathered, whole


class _Gathered(torch.autograd.Function):
    """Rows of all ranks; this rank's gradients are multiplied by ``world``, for later averaging.

    Every rank computes the same loss of the rows and keeps only the gradient of its own rows, so
    the average over the ranks would be the gradient divided by ``world``.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_rows: int, ranks: Ranks) -> Tensor:
        ctx.part, ctx.world = ranks.part(num_rows), ranks.world
        return ranks.gathered(rows, total=num_rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world * gradient[ctx.part], None, None


def average_gradients(weights: list[Tensor], ranks: Ranks) -> None:
    """Average the gradients of weights that are not in `JointNetwork` over all ranks.

    A rank without a gradient counts as zero; if no rank has one, none gets one.
    """
    if not ranks.are_many or not weights:
        return
    found = [weight.grad for weight in weights]
    present = torch.tensor([grad is not None for grad in found], device=weights[0].device)
    parts = [
        torch.zeros_like(weight) if grad is None else grad
        for weight, grad in zip(weights, found, strict=True)
    ]
    flat = torch.cat([present.to(parts[0].dtype), *(part.flatten() for part in parts)])
    counts, *means = torch.split(
        ranks.summed(flat), [len(weights), *(part.numel() for part in parts)]
    )
    for weight, count, total in zip(weights, counts.tolist(), means, strict=True):
        weight.grad = (total / ranks.world).view_as(weight) if count else None


def _as_bytes(tensors: Iterable[Tensor]) -> Tensor:
    """Rows of several tensors side by side, (b, bytes) uint8; gloo does not send every type."""
    flat = [tensor.reshape(len(tensor), prod(tensor.shape[1:])).contiguous() for tensor in tensors]
    return torch.cat([tensor.view(torch.uint8) for tensor in flat], dim=1)


def _from_bytes(packed: Tensor, like: list[Tensor | None]) -> list[Tensor | None]:
    """Inverse of `_as_bytes`: tensors with the types and row shapes of ``like``."""
    found: list[Tensor | None] = []
    start = 0
    for tensor in like:
        if tensor is None:
            found.append(None)
            continue
        stop = start + prod(tensor.shape[1:]) * tensor.element_size()
        rows = packed[:, start:stop].contiguous().view(tensor.dtype)
        found.append(rows.reshape(len(packed), *tensor.shape[1:]))
        start = stop
    return found
