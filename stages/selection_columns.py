"""The columns of a selection table: what the teacher is like on every sample, and who is kept."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import key_text
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.methods.data_selection import Selection
from pipeline.methods.head_influence import RowScores
from pipeline.methods.label_revision import revision_beta, softened_probs
from pipeline.methods.sample_scores import SampleScores, score_samples
from pipeline.scoring import Influence
from stages.configs import SelectConfig


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What the cache says of the clean view, and who is held out."""

    labels: Tensor
    keys: NDArray[np.uint8]
    logits: Tensor
    """(N, C) float32"""
    features: Tensor | None
    """(N, D) float16"""
    scores: SampleScores
    training: Tensor
    """Sample indices that may be selected (T), int64."""
    held_out: Tensor
    """Sample indices that are only looked at (V), int64."""

    @classmethod
    def read(cls, cache: TeacherCache, dataset: Dataset) -> "Clean":
        labels = torch.from_numpy(cache.labels)
        logits = torch.from_numpy(cache.logits(0)).float()
        has_features = cache.manifest.identity.features
        features = torch.from_numpy(cache.features(0)) if has_features else None
        return cls(
            labels=labels,
            keys=cache.keys,
            logits=logits,
            features=features,
            scores=score_samples(logits, labels, features),
            training=torch.from_numpy(dataset.training),
            held_out=torch.from_numpy(dataset.held_out),
        )

    @property
    def num_samples(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Column:
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def spread(scores: RowScores | None, inputs: Clean) -> Column:
    """Scores of the training rows at their sample indices; NaN elsewhere."""
    mean = np.full(inputs.num_samples, np.nan)
    std = np.full(inputs.num_samples, np.nan)
    if scores is not None:
        mean[inputs.training] = scores.mean.numpy()
        std[inputs.training] = scores.std.numpy()
    return Column(mean=mean, std=std)


def table_columns(
    inputs: Clean, influence: Influence | None, selection: Selection, config: SelectConfig
) -> dict[str, NDArray[np.generic]]:
    """Every column of the table but its metadata, by name."""
    scores = inputs.scores
    held_out = np.zeros(inputs.num_samples, dtype=bool)
    held_out[inputs.held_out] = True
    distilled = None if influence is None else influence.distilled.scores
    hard = None if influence is None else influence.hard.scores
    undistill = spread(None if distilled is None else distilled.dloss_undistill, inputs)
    swap = spread(None if hard is None else hard.dloss_swap, inputs)
    remove = spread(None if hard is None else hard.dloss_remove, inputs)
    none = np.full(inputs.num_samples, np.nan, dtype=np.float32)
    grand_head = none if scores.grand_head is None else scores.grand_head.numpy()
    return {
        "sample_index": np.arange(inputs.num_samples),
        "sample_key": np.array(key_text(inputs.keys)),
        "label": inputs.labels.numpy(),
        "held_out": held_out,
        "teacher_class": scores.teacher_class.numpy(),
        "teacher_correct": scores.teacher_correct.numpy(),
        "p_target": scores.p_target.numpy(),
        "p_max": scores.p_max.numpy(),
        "beta": _beta(inputs, config),
        "cross_entropy": scores.cross_entropy.numpy(),
        "el2n": scores.el2n.numpy(),
        "grand_head": grand_head,
        "margin": scores.margin.numpy(),
        "entropy": scores.entropy.numpy(),
        "dloss_undistill": undistill.mean,
        "dloss_swap": swap.mean,
        "dloss_remove": remove.mean,
        "view_std": undistill.std,
        "rank": np.where(held_out, -1, selection.rank),
        "selected": selection.selected,
        "reason": selection.reason,
    }


def _beta(inputs: Clean, config: SelectConfig) -> NDArray[np.float32]:
    """Share of the teacher in each revised clean-view label; 1 where a row is not revised."""
    beta = np.ones(inputs.num_samples, dtype=np.float32)
    if config.revision not in ("wrong", "all"):
        return beta
    probs = softened_probs(inputs.logits, temperature=config.revise_at or config.temperature)
    found = revision_beta(probs, inputs.labels, eta=config.eta).numpy()
    if config.revision == "all":
        return found
    return np.where(inputs.scores.teacher_correct.numpy(), beta, found)
