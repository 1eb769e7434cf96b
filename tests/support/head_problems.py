"""Small problems for a head, and the oracle of their tests: dense autograd of one function.

The oracle is written without the module's formulas.
"""

import dataclasses

import torch
from torch.nn import functional as F

from pipeline.influence.inputs import InfluenceSettings
from pipeline.methods.head.influence import heldout_gradient, score_rows
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import fit, solve

PLAIN = InfluenceSettings(
    l2=None,
    kd_weight=0.9,
    temperature=1.0,
    distilled=1.0,
    rounds=1,
    hessian_subsample=None,
    solver="exact",
    label_issues=True,
    diagnostics=True,
    param_change=True,
    seed=0,
)
"""Settings of influence scores that compute everything."""


def problem_of(
    *,
    seed=0,
    num_views=1,
    num_samples=40,
    num_features=5,
    num_classes=4,
    **settings,
):
    """Overlapping classes, a teacher that is often wrong, half of the rows distilled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    centres = torch.randn(num_classes, num_features, generator=generator)
    noise = torch.randn(num_views, num_samples, num_features, generator=generator)
    teacher = 2 * torch.randn(num_views, num_samples, num_classes, generator=generator)
    return HeadProblem(
        features=(0.5 * centres[labels] + 0.3 + noise).double(),
        labels=labels,
        soft_labels=torch.softmax(teacher.double(), dim=-1),
        **{
            "distilled": (torch.arange(num_samples) % 2).double(),
            "kd_weight": 0.6,
            "l2": 1e-2,
            "rows_per_chunk": 7,
        }
        | settings,
    )


def random_head(problem, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (problem.soft_labels.shape[2], problem.features.shape[2] + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def heldout_of(problem, *, seed=2, num_samples=30):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_samples, problem.features.shape[2], generator=generator).double()
    labels = torch.randint(problem.soft_labels.shape[2], (num_samples,), generator=generator)
    return features, labels


def objective(problem, weight, *, sample_weights=None):
    """J(W) by views and torch losses; ``sample_weights`` multiply each sample's loss."""
    s = problem.kd_weight * problem.distilled.double()
    tau, total = problem.temperature, 0.0
    for features, targets in zip(problem.features.double(), problem.soft_labels, strict=True):
        z = features @ weight[:, :-1].T + weight[:, -1]
        ce = F.cross_entropy(z, problem.labels, reduction="none")
        p = F.log_softmax(z / tau, dim=1)
        kl = (torch.xlogy(targets, targets) - targets * p).sum(dim=1)
        rows = (1 - s) * ce + s * tau**2 * kl
        total = total + (rows if sample_weights is None else sample_weights * rows).mean()
    regularised = weight if problem.regularise_bias else weight[:, :-1]
    return total / problem.num_views + 0.5 * problem.l2 * regularised.square().sum()


def dense_hessian(problem, weight, *, sample_weights=None):
    size = weight.numel()
    hessian = torch.autograd.functional.hessian(
        lambda w: objective(problem, w, sample_weights=sample_weights), weight
    )
    return hessian.reshape(size, size)


def dense_solve(matrix, right_side):
    """Least-norm solution: the matrix has no inverse along the classes' common bias."""
    solution = torch.linalg.lstsq(matrix, right_side.flatten(), rcond=1e-12, driver="gelsd")
    return solution.solution.reshape(right_side.shape)


def refit(problem, weight, *, sample_weights=None):
    """Newton with dense derivatives until the gradient is rounding."""
    for _ in range(50):
        at = weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(problem, at, sample_weights=sample_weights), at)
        if gradient.norm() <= 1e-12:
            return at.detach()
        hessian = dense_hessian(problem, at.detach(), sample_weights=sample_weights)
        weight = at.detach() - dense_solve(hessian, gradient)
    raise AssertionError("the oracle did not converge")


def heldout_loss(weight, heldout):
    features, labels = heldout
    return float(F.cross_entropy(features @ weight[:, :-1].T + weight[:, -1], labels))


def scored(problem, *, heldout=None):
    """(scores, linearisation, V) at the problem's minimum."""
    features, labels = heldout_of(problem) if heldout is None else heldout
    found = fit(problem, start=torch.zeros_like(random_head(problem)), gtol=1e-12)
    linear = problem.linearise(found.weight)
    solution = solve(linear, heldout_gradient(found.weight, features, labels), rtol=1e-12).solution
    return score_rows(linear, solution), linear, solution


def data_hessian(problem, weight):
    """The dense Hessian without the regulariser."""
    bare = dataclasses.replace(problem, l2=1e-300)
    return dense_hessian(bare, weight)


def class_factor(problem, weight):
    """G of K-FAC: the mean logit Hessian, by autograd per row."""

    def row_loss(z, label, target, share):
        hard = F.cross_entropy(z, label)
        log_p = F.log_softmax(z / problem.temperature, dim=0)
        return (1 - share) * hard - share * problem.temperature**2 * (target * log_p).sum()

    logits = problem.features[0] @ weight[:, :-1].T + weight[:, -1]
    shares = problem.kd_weight * problem.distilled
    hessians = [
        torch.autograd.functional.hessian(lambda z, rest=rest: row_loss(z, *rest), z)
        for z, *rest in zip(logits, problem.labels, problem.soft_labels[0], shares, strict=True)
    ]
    return torch.stack(hessians).mean(dim=0)
