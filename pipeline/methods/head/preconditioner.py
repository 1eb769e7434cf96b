"""Preconditioners of conjugate gradients on a head's Hessian.

Softmax rows that are nearly certain add almost no curvature, so each class has the curvature of its
own few uncertain rows. A Kronecker product cannot represent that. The Hessian's diagonal blocks
can, one of D + 1 columns for each class:

    B_c = (1/N) sum_i p_ic (1 - p_ic) h~_i h~_i^T + l2 I

They are computed from the rows of the largest weight p (1 - p), a few times as many as there are
columns; the weight of all others multiplies the mean of h~ h~^T. Measured on 50,000 rows, 100
classes, 256 features and a confident teacher: 22 products to a residual of 1e-5 where EK-FAC needs
108. If the blocks do not fit into memory, EK-FAC is used. Several processes divide the classes
among themselves; each computes the blocks of its classes from the rows of all processes.

Shapes: C classes, D features, M rows, G right sides.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.problem import Linearisation
from pipeline.methods.rank_sums import Sharing, largest, summed

BLOCK_BYTES = 3 * 2**29  # 1,000 classes and 512 features need 1.05 GB in float32
DOUBLE_BYTES = 2**28  # blocks below this are factored in float64
ROUGH_BYTES = 2**24  # inverses above this are rounded to float32
ROWS_PER_COLUMN = 4  # 2 need a few more products, 8 take longer to compute
MOST_ROWS = 100_000
JITTER = 1e-6  # of the diagonal, where float32 would lose positive definiteness


class Preconditioner(Protocol):
    """An approximate inverse of the Hessian."""

    def inverse(self, right_side: Tensor) -> Tensor:
        """About H^-1 R, ([G,] C, D + 1) float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassBlocks:
    """Inverses of the diagonal blocks: a product is several times faster than two solves."""

    inverses: Tensor
    """Blocks of this process's classes, every world-th of C: (c, D + 1, D + 1), symmetric, float32
    or float64."""

    sharing: Sharing

    def inverse(self, right_side: Tensor) -> Tensor:
        """B^-1 R, ([G,] C, D + 1) float64."""
        num_classes, num_inputs = right_side.shape[-2:]
        rows = right_side.to(self.inverses).reshape(-1, num_classes, num_inputs)
        own = rows[:, self.sharing.rank :: self.sharing.world]
        solved = torch.bmm(own.transpose(0, 1), self.inverses).transpose(0, 1)
        if self.sharing.world > 1:
            solved = _of_all_classes(solved, num_classes, self.sharing)
        return solved.reshape(right_side.shape).double()


def preconditioner(linear: Linearisation) -> Preconditioner:
    """Class blocks if they fit into memory, else EK-FAC."""
    num_classes, num_inputs = linear.weight.shape
    if 4 * num_classes * num_inputs**2 > BLOCK_BYTES:
        return ekfac(linear)
    return class_blocks(linear)


def class_blocks(linear: Linearisation) -> ClassBlocks:
    """The blocks of the Hessian at the weights of ``linear``."""
    num_classes, num_inputs = linear.weight.shape
    inputs, weights = _rows_and_weights(_reduced(linear))
    num_rows = len(inputs)
    dtype = torch.float64 if 8 * num_classes * num_inputs**2 <= DOUBLE_BYTES else inputs.dtype
    weights = weights.T.contiguous()
    most = weights.topk(min(num_rows, ROWS_PER_COLUMN * num_inputs), dim=1)
    others = (weights.sum(dim=1) - most.values.sum(dim=1)) / num_rows
    mean = (inputs.T @ inputs / num_rows).to(dtype)
    blocks = inputs.new_empty((len(weights), num_inputs, num_inputs), dtype=dtype)
    for block, rows, weight, other in zip(blocks, most.indices, most.values, others, strict=True):
        part = inputs[rows] * (weight / num_rows).sqrt()[:, None]
        block.copy_(part.T @ part).add_(float(other) * mean)
    sharing, l2 = linear.problem.sharing, linear.problem.l2
    size = largest(sharing, _largest_entry(blocks))
    inverses = torch.cholesky_inverse(_cholesky(blocks, l2=l2, sharing=sharing), out=blocks)
    # Float32 halves the memory traffic of large inverses and still resolves l2.
    num_bytes = num_classes * num_inputs**2 * dtype.itemsize
    is_rough = num_bytes > ROUGH_BYTES and l2 > JITTER * size
    return ClassBlocks(inverses=inverses.float() if is_rough else inverses, sharing=sharing)


def _reduced(linear: Linearisation) -> Linearisation:
    """The same problem with at most as many rows as fit into memory at once."""
    problem = linear.problem.curvature
    stride = -(-problem.num_rows // MOST_ROWS)
    if stride == 1 and linear.kept is not None:
        return linear
    rows = torch.arange(0, problem.num_samples, stride)
    return problem.part(rows).linearise(linear.weight, cache_bytes=2**62)


def _rows_and_weights(linear: Linearisation) -> tuple[Tensor, Tensor]:
    """h~ and p (1 - p) of all rows, (M, D + 1) and (M, c) of this process's classes."""
    num_classes, num_inputs = linear.weight.shape
    dtype = linear.problem.products
    inputs = [linear.weight.new_empty(0, num_inputs, dtype=dtype)]
    weights = [linear.weight.new_empty(0, num_classes, dtype=dtype)]
    for chunk in linear.bends():
        inputs.append(chunk.inputs)
        parts = [share * probs * (1 - probs) for share, probs in chunk.curvatures()]
        weights.append(torch.stack(parts).sum(dim=0))
    sharing = linear.problem.sharing
    return sharing.gathered(torch.cat(inputs)), _of_own_classes(torch.cat(weights), sharing)


def _of_own_classes(weights: Tensor, sharing: Sharing) -> Tensor:
    """Convert own rows in all classes, (m, C), to all rows in the own classes, (M, c)."""
    if sharing.world == 1:
        return weights
    own = weights[:, :0]
    for rank in range(sharing.world):  # one rank at a time saves memory: all rows are (M, C)
        columns = sharing.gathered(weights[:, rank :: sharing.world])
        own = columns if rank == sharing.rank else own
    return own


def _of_all_classes(solved: Tensor, num_classes: int, sharing: Sharing) -> Tensor:
    """Gather rows of the own classes, (G, c, D + 1), to all classes, (G, C, D + 1)."""
    whole = solved.new_zeros(len(solved), num_classes, solved.shape[2])
    whole[:, sharing.rank :: sharing.world] = solved
    return summed(sharing, whole)


def _largest_entry(blocks: Tensor) -> float:
    """Largest entry of the blocks; 0 if a process has no class."""
    return float(blocks.diagonal(dim1=1, dim2=2).max()) if len(blocks) else 0.0


def _cholesky(blocks: Tensor, *, l2: float, sharing: Sharing) -> Tensor:
    """Factors of blocks + l2, or of slightly more if rounding needs it; overwrites ``blocks``."""
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    diagonal.add_(l2)
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(blocks)
    if largest(sharing, float(failed.any())) > 0.0:
        diagonal.add_(JITTER * diagonal.amax(dim=1, keepdim=True))
        factors = torch.linalg.cholesky(blocks)
    return factors
