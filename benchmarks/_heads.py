"""Heads fitted to a cache's features, with the scores of every predictor of influence there."""

from dataclasses import dataclass

import torch
from _kronfluence import DEFAULT_DAMPING, kronfluence_fit
from _refits import Centre, Target
from torch import Tensor

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.dataset import Dataset
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import HeadScores, heldout_gradient, score_rows
from pipeline.methods.head.problem import HeadProblem, centred
from pipeline.methods.head.rows import with_bias_input
from pipeline.methods.head.solver import solve
from pipeline.methods.label_revision import softened_probs
from stages.caches import Caches
from stages.config.root import Config

EXACT, EKFAC, GRAD_DOT = "exact solve", "EK-FAC", "grad-dot"
KRONFLUENCE, KRONFLUENCE_L2 = "kronfluence", "kronfluence, damping = l2"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The samples that the head is fitted to, and its settings."""

    l2: float
    temperature: float = 1.0
    num_rows: int | None = None
    """Size of a random part of the training samples; None: all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Cached numbers of the training and held-out samples in the clean view."""

    features: Tensor
    """(N, D) float64."""
    logits: Tensor
    """(N, C)."""
    labels: Tensor
    target: Target
    start: Tensor
    """The teacher's head, (C, D + 1)."""
    kd_weight: float

    @classmethod
    def read(cls, config: Config) -> "Data":
        dataset = Dataset.open(config.data_folder)
        cache = Caches(config=config, dataset=dataset).training
        joined = join_samples(cache, dataset.train.samples, place=str(dataset.train.path))
        cached = HydratedCache(cache=cache, joined=joined, folder=config.caches_folder)
        known = torch.from_numpy(joined.known)
        training, held_out = (
            rows[known[rows]]
            for rows in map(torch.from_numpy, (dataset.training, dataset.held_out))
        )
        labels = torch.from_numpy(dataset.train.samples.labels)
        features = torch.from_numpy(cached.features(0)).double()
        weight, bias = (torch.from_numpy(part).double() for part in cache.head)
        return cls(
            features=features[training],
            logits=torch.as_tensor(cached.logits(0, temperature=1.0))[training].double(),
            labels=labels[training],
            target=Target(features=features[held_out], labels=labels[held_out]),
            start=torch.cat([weight, bias[:, None]], dim=1),
            kd_weight=config.select.influence.kd_weight,
        )

    def problem(self, setting: Setting, *, distilled: float) -> HeadProblem:
        rows = torch.arange(len(self.labels))
        if setting.num_rows is not None:
            generator = torch.Generator().manual_seed(0)
            rows = torch.randperm(len(rows), generator=generator)[: setting.num_rows].sort().values
        soft = softened_probs(self.logits[rows], temperature=setting.temperature)
        return HeadProblem(
            features=self.features[None, rows],
            labels=self.labels[rows],
            soft_labels=soft[None],
            distilled=torch.full((len(rows),), distilled, dtype=torch.float64),
            kd_weight=self.kd_weight,
            temperature=setting.temperature,
            l2=setting.l2,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A fitted head with the scores of every predictor there."""

    centre: Centre
    target: Target
    scores: dict[str, HeadScores]
    effective: float
    """p_eff / N."""
    kronfluence_error: float
    """Relative difference between scores from kronfluence's factors and its own scores."""

    @classmethod
    def of(cls, problem: HeadProblem, data: Data) -> "Head":
        centre, target = Centre.of(problem, start=data.start), data.target
        linear, weight = centre.linear, centre.weight
        gradient = heldout_gradient(weight, target.features, target.labels)
        factors = ekfac(linear)
        other = kronfluence_fit(problem, weight, features=target.features, labels=target.labels)
        solutions = {
            EXACT: solve(linear, gradient).solution,
            EKFAC: factors.inverse(gradient),
            GRAD_DOT: gradient,
            KRONFLUENCE: other.inverse(gradient, damping=DEFAULT_DAMPING),
            KRONFLUENCE_L2: other.inverse(gradient, damping=problem.l2),
        }
        scores = {name: score_rows(linear, centred(V)) for name, V in solutions.items()}
        ours = scores[KRONFLUENCE].dloss_remove.mean
        return cls(
            centre=centre,
            target=target,
            scores=scores,
            effective=factors.effective_parameters / problem.num_samples,
            kronfluence_error=float((ours - other.removal).norm() / other.removal.norm()),
        )

    @property
    def problem(self) -> HeadProblem:
        return self.centre.linear.problem

    @property
    def base(self) -> float:
        return self.target.loss(self.centre.weight)

    def column(self, name: str) -> dict[str, Tensor]:
        """One score of every predictor, (N,)."""
        return {by: getattr(scores, name).mean for by, scores in self.scores.items()}

    def after_step(self, pushes: Tensor, *, share: float = 1.0) -> Tensor:
        """Change of held-out loss after one Newton step against gradients of (G, C, D + 1)."""
        steps = self.centre.solve(pushes, share=share)
        losses = [self.target.loss(self.centre.weight - step) for step in steps]
        return torch.tensor(losses, dtype=torch.float64) - self.base


def midway(centre: Centre, target: Target) -> HeadScores:
    """Exact scores at the head of the average change."""
    gradient = heldout_gradient(centre.weight, target.features, target.labels)
    return score_rows(centre.linear, solve(centre.linear, gradient).solution)


def pushes(problem: HeadProblem, masks: Tensor, residuals: Tensor) -> Tensor:
    """(1/N) sum over each mask's samples of residual h~^T, (G, C, D + 1)."""
    inputs = with_bias_input(problem.features[0])
    return torch.stack([(mask[:, None] * residuals).T @ inputs for mask in masks]) / len(inputs)


def swap_residuals(head: Head) -> Tensor:
    """Change of each sample's logit gradient by distilling it, (N, C)."""
    parts = [
        chunk.soft_residuals(chunk.rows.soft) - chunk.hard_residuals()
        for chunk in head.centre.linear.chunks()
    ]
    return head.problem.kd_weight * torch.cat(parts)
