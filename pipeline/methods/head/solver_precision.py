"""Which precision a head problem is worth, by its size."""

from dataclasses import replace
from typing import Final

import torch

from pipeline.methods.head.problem import HeadProblem

_MIXED_FROM: Final = 1e9  # flop of a Hessian product; below it float32 saves nothing
_SINGLE_FROM: Final = 1e12  # flop of a pass; above it float64 would take minutes


def with_precision(problem: HeadProblem, *, num_classes: int) -> HeadProblem:
    """The problem in the precision that its size allows.

    Small: float64. Large: Hessian products in float32, refined until the float64 residual is small
    enough. Larger still: float32 within chunks, float64 between them.
    """
    flop = 4.0 * problem.num_rows * num_classes * (problem.features.shape[2] + 1)
    if flop > _SINGLE_FROM:
        return replace(problem, dtype=torch.float32, products=torch.float32)
    if flop > _MIXED_FROM:
        return replace(problem, products=torch.float32)
    return problem


def least_gradient(problem: HeadProblem) -> float:
    """Norm of the gradient below which a fit in the problem's precision ends."""
    if problem.hessian_samples is not None:
        return 1e-4  # the curvature of some samples is not worth more
    return 1e-8 if problem.products == torch.float64 else 1e-6


def least_residual(problem: HeadProblem) -> float:
    """Relative residual below which a solve in the problem's precision ends."""
    if problem.dtype == torch.float32:
        return 1e-4
    return 1e-6 if problem.products == torch.float64 else 1e-5  # scores rank alike from 1e-3 on


def describe_precision(problem: HeadProblem) -> str:
    """In words, for records."""
    if problem.dtype == torch.float32:
        return "float32"
    if problem.products == torch.float32:
        return "float64, float32 products refined"
    return "float64"
