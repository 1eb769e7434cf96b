"""Batch normalisation over a batch that is divided among several ranks.

Each rank normalises its rows by mean and variance of all rows, and its gradients equal those of one
process with the whole batch. A rank may have no rows. Torch's `SyncBatchNorm` works only on GPUs
and only for torch's own modules. Here every call of `batch_norm` by a module of batch normalisation
is replaced, so state dicts and classes derived from torch's stay unchanged.

Shapes: B rows of this rank, N values of a channel over all ranks, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pipeline.models.reused_head import VectorNorm
from pipeline.runtime.ranks import Ranks

_stats = torch.ops.aten.batch_norm_update_stats
_normalise = torch.ops.aten.native_batch_norm
_backward = torch.ops.aten.native_batch_norm_backward


def join_norms(network: nn.Module, ranks: Ranks) -> None:
    """Make every batch normalisation of a network use the batch of all ranks in training."""
    if not ranks.are_many:
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _joined(type(module))  # type: ignore[assignment, arg-type]
            module._ranks = ranks  # type: ignore[assignment]


@cache
def _joined(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of ``kind`` that joins ranks; changing a module's class keeps its identity."""
    base = _JoinedVectors if issubclass(kind, VectorNorm) else _Joined
    # Called only when needed, because it imports torch's compiler, which takes five seconds.
    eager = torch.compiler.disable(base.forward)  # type: ignore[no-untyped-call]
    return type(f"Joined{kind.__name__}", (base, kind), {"forward": eager})


class _Joined(nn.Module):
    """Mixin in front of a class of batch normalisation."""

    _ranks: Ranks

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return super().forward(values)  # type: ignore[no-any-return]
        with _OverAllRanks(self._ranks):
            return super().forward(values)  # type: ignore[no-any-return]


class _JoinedVectors(_Joined):
    def num_rows(self, vectors: Tensor) -> int:
        """Rows of all ranks."""
        return int(self._ranks.summed(torch.tensor(len(vectors))))


class _OverAllRanks(TorchFunctionMode):
    """Mode in which `batch_norm` of a batch uses the statistics of all ranks' batches."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return joint_batch_norm(self._ranks, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def joint_batch_norm(
    ranks: Ranks,
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of the batch that all ranks hold together.

    Args:
        ranks: the ranks; all must call this function.
        values: this rank's rows, (B, C, ...); B may be 0 and differ between ranks.
        running_mean: (C,), updated as by one process.
        running_var: (C,), updated as by one process.
        weight: (C,)
        bias: (C,)
        training: False: use the running statistics, without communication.
        momentum: share of this batch in the running statistics.
        eps: added to variances.

    Raises:
        ValueError: if there is one value per channel over all ranks.
    """
    if not training:
        return F.batch_norm(
            values, running_mean, running_var, weight, bias, training, momentum, eps
        )
    own = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    num_channels = values.shape[1]
    scale = values.new_ones(num_channels, dtype=own) if weight is None else weight
    shift = values.new_zeros(num_channels, dtype=own) if bias is None else bias
    mean, variance, count = _moments(values.detach(), ranks, dtype=own)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    normed: Tensor = _JointNorm.apply(values, scale, shift, (mean, variance, count, eps), ranks)
    return normed


def _moments(values: Tensor, ranks: Ranks, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Mean and variance (C,) over the values of all ranks, and their number per channel."""
    num_channels = values.shape[1]
    own = values.new_zeros(2 * num_channels + 1, dtype=torch.float64)
    if values.numel():
        zeros = values.new_zeros(num_channels, dtype=dtype)
        means, variances = _stats(values, zeros, zeros.clone(), 0.0)
        own = torch.cat([means, variances, means.new_full((1,), values.numel() // num_channels)])
    found = ranks.each(own.double())
    means, variances = found[:, :num_channels], found[:, num_channels:-1]
    counts = found[:, -1:]
    count = int(counts.sum())
    if count == 1:
        raise ValueError("Expected more than 1 value per channel when training")
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean.to(dtype), variance.to(dtype), count


class _JointNorm(torch.autograd.Function):
    """The normalised rows; gradients of scale and shift are this rank's part of the sums."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        values: Tensor,
        scale: Tensor,
        shift: Tensor,
        moments: tuple[Tensor, Tensor, int, float],
        ranks: Ranks,
    ) -> Tensor:
        mean, variance, count, eps = moments
        ctx.save_for_backward(values, scale, mean, variance)
        ctx.count, ctx.eps, ctx.ranks = count, eps, ranks  # type: ignore[attr-defined]
        if not values.numel():
            return torch.empty_like(values)
        normed: Tensor = _normalise(values, scale, shift, mean, variance, False, 0.0, eps)[0]
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        sums = mean.new_zeros((2, len(mean)))  # of the gradient times the normed value, and alone
        if values.numel():
            only_sums = [False, True, True]
            _, *own = _backward(
                gradient, values, scale, mean, variance, mean, inverse, True, ctx.eps, only_sums
            )
            sums = torch.stack(own)
        along, alone = ctx.ranks.summed(sums.clone()) / ctx.count
        if values.numel():
            # scale * inverse * (gradient - alone - normed * along), by two passes over the values
            steep = scale * inverse
            rest = _normalise(
                values, -steep * along, -steep * alone, mean, variance, False, 0.0, ctx.eps
            )[0]
            shape = (1, -1, *[1] * (values.ndim - 2))
            gradient = torch.addcmul(rest, gradient, steep.view(shape).to(rest.dtype))
        return gradient, sums[0].to(scale.dtype), sums[1].to(scale.dtype), None, None
