"""Preconditioners of conjugate gradients on a head's Hessian.

Softmax rows that are nearly certain add almost no curvature, so each class has the curvature of its
own few uncertain rows. A Kronecker product cannot represent that. The Hessian's diagonal blocks
can, one of D + 1 columns for each class:

    B_c = (1/N) sum_i p_ic (1 - p_ic) h~_i h~_i^T + l2 I

They are computed from the rows of the largest weight p (1 - p), a few times as many as there are
columns; the weight of all others multiplies A = (1/N) sum_i h~_i h~_i^T. Measured on 50,000 rows,
100 classes, 256 features and a confident teacher: 22 products to a residual of 1e-5 where EK-FAC
needs 108.

Many classes with few samples each need neither the memory nor the time of whole blocks. With r rows
U_c = sqrt(w / N) h~^T of the largest weight and o_c the weight of all others,

    B_c ~ U_c^T U_c + D_c,   D_c = o_c A + l2 I,   diagonal in the eigenvectors of A,

is inverted by Woodbury's identity with a matrix of r rows. Measured on 1,500 rows, 500 classes, 640
features and l2 = 1e-4: 35 to 48 products with r = 64 and 16 where whole blocks need 24 and EK-FAC
152, and they take less than a 25th of the time of whole blocks to compute. If not even that fits
into memory, EK-FAC is used. Several processes divide the classes among themselves; each computes
the blocks of its classes from the rows of all processes.

Shapes: C classes, D features, M rows, G right sides, r rows of a low-rank block.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.problem import Linearisation
from pipeline.methods.rank_sums import Sharing, largest, led, summed

BLOCK_BYTES = 3 * 2**29  # 1,000 classes and 512 features need 1.05 GB in float32
DOUBLE_BYTES = 2**28  # blocks below this are factored in float64
ROUGH_BYTES = 2**24  # inverses above this are rounded to float32 if that resolves l2
ROWS_PER_COLUMN = 4  # 2 need a few more products, 8 take longer to compute
MOST_ROWS = 100_000
ROWS_OF_A_BLOCK = 32  # 16 need a fifth more products, 64 a tenth fewer and twice the time
FEWEST_ROWS_OF_A_BLOCK = 4  # fewer are no better than EK-FAC
WIDE = 256  # narrower blocks are computed at once
CLASSES_AT_ONCE = 128  # bounds the float64 memory while low-rank blocks are computed
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


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankBlocks:
    """Inverses of the diagonal blocks, each as a diagonal minus a product of r rows.

    With b in the eigenvectors Q of A: B_c^-1 b ~ Q (b / D_c - V_c^T V_c b)."""

    basis: Tensor
    """Q, (D + 1, D + 1), eigenvectors in columns."""

    diagonal: Tensor
    """D_c of this process's classes, (c, D + 1), positive."""

    rows: Tensor
    """V_c, (c, r, D + 1)."""

    sharing: Sharing

    def inverse(self, right_side: Tensor) -> Tensor:
        """B^-1 R, ([G,] C, D + 1) float64."""
        num_classes, num_inputs = right_side.shape[-2:]
        rows = right_side.to(self.basis).reshape(-1, num_classes, num_inputs)
        own = rows[:, self.sharing.rank :: self.sharing.world] @ self.basis
        stretched = torch.bmm(own.transpose(0, 1), self.rows.transpose(1, 2))
        solved = own / self.diagonal - torch.bmm(stretched, self.rows).transpose(0, 1)
        solved = solved @ self.basis.T
        if self.sharing.world > 1:
            solved = _of_all_classes(solved, num_classes, self.sharing)
        return solved.reshape(right_side.shape).double()


def preconditioner(linear: Linearisation) -> Preconditioner:
    """Class blocks, in the form that costs least; EK-FAC if none fits into memory."""
    num_classes, num_inputs = linear.weight.shape
    fits = 4 * num_classes * num_inputs**2 <= BLOCK_BYTES
    # Whole blocks take about as long as 2.5 D^2 / N products, and save fewer if that is many.
    num_rows = linear.problem.curvature.num_rows
    if fits and (num_inputs <= WIDE or num_inputs**2 <= 4 * num_rows):
        return class_blocks(linear)
    num_columns = 4 * num_classes * num_inputs
    rank = min(ROWS_OF_A_BLOCK, BLOCK_BYTES // (2 * num_columns))
    if rank < FEWEST_ROWS_OF_A_BLOCK:
        return ekfac(linear)
    return low_rank_blocks(linear, rank=rank)


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


def low_rank_blocks(linear: Linearisation, *, rank: int) -> LowRankBlocks:
    """The blocks of the Hessian at the weights of ``linear``, each from ``rank`` own rows."""
    inputs, weights = _rows_and_weights(_reduced(linear))
    num_rows, sharing, l2 = len(inputs), linear.problem.sharing, linear.problem.l2
    found = torch.linalg.eigh((inputs.T @ inputs).double() / num_rows)
    basis = led(sharing, found.eigenvectors)  # signs and rounding may differ between machines
    spread = led(sharing, found.eigenvalues).clamp(min=0.0)
    rotated = inputs @ basis.to(inputs)
    weights = weights.T.contiguous()
    most = weights.topk(min(num_rows, rank), dim=1)
    others = (weights.sum(dim=1) - most.values.sum(dim=1)).clamp(min=0.0).double() / num_rows
    # Rounding of float32 is amplified by the ratio of a block's curvature, at most this, to l2.
    size = _largest_mean(weights) * float(inputs.square().sum(dim=1).max())
    num_bytes = 8 * linear.weight.numel() * rank
    is_rough = num_bytes > ROUGH_BYTES and l2 > 10.0 * JITTER * largest(sharing, size)
    dtype = torch.float32 if is_rough else torch.float64
    diagonal = (others[:, None] * spread + l2).to(dtype)
    rows = rotated.new_empty((len(weights), most.indices.shape[1], inputs.shape[1]), dtype=dtype)
    for start in range(0, len(weights), CLASSES_AT_ONCE):
        part = slice(start, start + CLASSES_AT_ONCE)
        scale = (most.values[part] / num_rows).sqrt()[:, :, None]
        own = (rotated[most.indices[part]] * scale).to(dtype)
        stretched = own / diagonal[part, None]
        inner = (own @ stretched.transpose(1, 2)).double()
        inner.diagonal(dim1=1, dim2=2).add_(1.0)
        factor = torch.linalg.cholesky(inner).to(dtype)
        rows[part] = torch.linalg.solve_triangular(factor, stretched, upper=False)
    return LowRankBlocks(basis=basis.to(dtype), diagonal=diagonal, rows=rows, sharing=sharing)


def _reduced(linear: Linearisation) -> Linearisation:
    """The same problem with at most as many rows as fit into memory at once."""
    problem = linear.problem.curvature
    num_bytes = problem.products.itemsize * sum(linear.weight.shape)  # of a row
    stride = -(-problem.num_rows // min(MOST_ROWS, BLOCK_BYTES // num_bytes))
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


def _largest_mean(weights: Tensor) -> float:
    """Largest mean weight of a class; 0 if a process has no class."""
    return float(weights.mean(dim=1).max()) if len(weights) else 0.0


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
