"""What a head problem refuses."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pipeline.methods.head_problem import HeadProblem


def require_shapes(problem: "HeadProblem") -> None:
    """Refuse rows that do not belong together."""
    if len(problem.features.shape) != 3 or 0 in problem.features.shape:
        raise ValueError(
            f"features must be (views, samples, features), got {tuple(problem.features.shape)}"
        )
    num_views, num_samples, _ = problem.features.shape
    if problem.labels.shape != (num_samples,):
        raise ValueError(f"labels must be ({num_samples},), got {tuple(problem.labels.shape)}")
    soft, distilled = problem.soft_labels, problem.distilled
    wanted = (num_views, num_samples)
    if soft is not None and (len(soft.shape) != 3 or tuple(soft.shape[:2]) != wanted):
        raise ValueError(
            f"soft_labels must be ({num_views}, {num_samples}, classes), got {tuple(soft.shape)}"
        )
    if distilled is not None and distilled.shape != (num_samples,):
        raise ValueError(f"distilled must be ({num_samples},), got {tuple(distilled.shape)}")


def require_settings(problem: "HeadProblem") -> None:
    """Refuse numbers outside their range."""
    if not 0.0 <= problem.kd_weight <= 1.0:
        raise ValueError(f"kd_weight must be in [0, 1], got {problem.kd_weight}")
    if not (math.isfinite(problem.temperature) and problem.temperature > 0.0):
        raise ValueError(f"temperature must be finite and above 0, got {problem.temperature}")
    if not (math.isfinite(problem.l2) and problem.l2 > 0.0):
        raise ValueError(f"l2 must be finite and above 0, got {problem.l2}")
    if problem.rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk must be at least 1, got {problem.rows_per_chunk}")
    if int(problem.labels.min()) < 0:
        raise ValueError(f"labels must not be negative, got {int(problem.labels.min())}")
    distilled = problem.distilled
    if distilled is None:
        return
    if not bool(((distilled >= 0) & (distilled <= 1)).all()):
        raise ValueError("distilled must be in [0, 1], got a value outside")
    if problem.soft_labels is None and bool(distilled.any()):
        raise ValueError("soft_labels are missing: distilled rows need them")


def require_weight(problem: "HeadProblem", weight: Tensor) -> None:
    """Refuse a W that does not fit the data."""
    num_classes, num_inputs = weight.shape
    wanted = problem.features.shape[2] + 1
    if num_inputs != wanted:
        raise ValueError(f"weight must have {wanted} columns (features and bias), got {num_inputs}")
    soft, highest = problem.soft_labels, int(problem.labels.max())
    if soft is not None and soft.shape[2] != num_classes:
        raise ValueError(f"weight must have {soft.shape[2]} rows (classes), got {num_classes}")
    if highest >= num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}), got {highest}")
