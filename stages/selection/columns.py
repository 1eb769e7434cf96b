"""The columns of a selection table, and the strategy that chooses its rows."""

from dataclasses import dataclass, fields, replace
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts import scores as score_format
from pipeline.artefacts import selection as selection_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.scores import ScoreTable
from pipeline.artefacts.selection import key_text
from pipeline.errors import ConfigError
from pipeline.influence.repair import TeacherRows
from pipeline.methods.data_selection import Selection, select_samples
from pipeline.methods.data_selection_rules import Rule, SelectionCandidates
from pipeline.methods.label_revision import revision_beta, softened_probs
from pipeline.methods.sample_scores import SampleScores, score_samples
from stages.config.select import SelectConfig
from stages.selection.wording import sign_of

Fallback: TypeAlias = Literal["all", "random"]
NOT_CACHED = "not in the cache"
"""Reason of a sample that is missing from the cache."""
GUESSED: Final = {"all": "scores are guesses", "random": "drawn, scores are guesses"}
"""Reason of a sample that was chosen without the scores, by the strategy that chose."""


@dataclass(frozen=True, kw_only=True)
class CleanView:
    """Cached numbers of every sample's clean view, and the samples that are held out."""

    labels: Tensor
    """Labels of the data set, (N,) int64."""
    keys: NDArray[np.uint8]
    known: Tensor
    """True where the cache has the sample, (N,); scores of the others are NaN."""
    beta: NDArray[np.float32]
    """Share of the teacher in each revised label; 1 where a label is not revised."""
    scores: SampleScores
    """Scores at the sample indices; classes are -1 where they are not known."""
    training: Tensor
    """Sample indices that may be selected (known samples of T), int64."""
    held_out: Tensor
    """Sample indices that are held out and known (known samples of V), int64."""
    all_held_out: Tensor
    """Sample indices of V, int64."""

    @classmethod
    def read(cls, cached: TeacherRows, dataset: Dataset, config: SelectConfig) -> "CleanView":
        known = torch.from_numpy(cached.joined.known)
        samples = dataset.train.samples
        labels = torch.from_numpy(samples.labels)
        scores = _scores(cached, labels, known)
        training, held_out = (
            torch.from_numpy(rows) for rows in (dataset.training, dataset.held_out)
        )
        return cls(
            labels=labels,
            keys=samples.keys,
            known=known,
            beta=_beta(cached, labels, known, scores.teacher_correct, config),
            scores=_at_samples(scores, known),
            training=training[known[training]],
            held_out=held_out[known[held_out]],
            all_held_out=held_out,
        )

    @property
    def num_samples(self) -> int:
        return len(self.labels)


def _scores(cached: TeacherRows, labels: Tensor, known: Tensor) -> SampleScores:
    """Scores of the known samples, a shard at a time: all of a top-k cache would not fit."""
    has_features = cached.cache.manifest.identity.features
    features = torch.from_numpy(cached.features(0)) if has_features else None
    parts = []
    for block in cached.logit_blocks(0, temperature=1.0):
        seen, own = known[block.samples], labels[block.samples]
        inputs = None if features is None else features[block.samples][seen]
        parts.append(score_samples(block.logits[seen], own[seen], inputs))

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    names = [one.name for one in fields(SampleScores) if getattr(parts[0], one.name) is not None]
    return replace(parts[0], **{name: joined(name) for name in names})


def _at_samples(scores: SampleScores, known: Tensor) -> SampleScores:
    """Move the scores of the known samples to their sample indices."""

    def spread_out(values: Tensor) -> Tensor:
        missing = {torch.bool: False, torch.int64: -1}.get(values.dtype, torch.nan)
        out = torch.full((len(known),), missing, dtype=values.dtype)
        out[known] = values
        return out

    values = {field.name: getattr(scores, field.name) for field in fields(scores)}
    changes = {name: spread_out(value) for name, value in values.items() if value is not None}
    return replace(scores, **changes)


def _beta(
    cached: TeacherRows, labels: Tensor, known: Tensor, correct: Tensor, config: SelectConfig
) -> NDArray[np.float32]:
    """Share of the teacher in each revised clean-view label; 1 where it is not revised."""
    beta = torch.ones(len(labels))
    if config.revision in ("wrong", "all"):
        temperature = config.revise_at or config.temperature
        parts = []
        for block in cached.logit_blocks(0, temperature=temperature):
            seen, own = known[block.samples], labels[block.samples]
            probs = softened_probs(block.logits[seen], temperature=temperature)
            parts.append(revision_beta(probs, own[seen], eta=config.eta))
        found = torch.cat(parts)
        beta[known] = torch.where(correct, 1.0, found) if config.revision == "wrong" else found
    return beta.numpy()


def table_columns(
    inputs: CleanView, influence: ScoreTable | None, selection: Selection
) -> dict[str, NDArray[np.generic]]:
    """Columns of the table by name."""
    scores = inputs.scores
    held_out = np.zeros(inputs.num_samples, dtype=bool)
    held_out[inputs.all_held_out] = True
    unknown = ~inputs.known.numpy()
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
        "beta": inputs.beta,
        "cross_entropy": scores.cross_entropy.numpy(),
        "el2n": scores.el2n.numpy(),
        "grand_head": grand_head,
        "margin": scores.margin.numpy(),
        "entropy": scores.entropy.numpy(),
        **_influence_columns(influence, inputs.num_samples),
        "rank": np.where(held_out | unknown, -1, selection.rank),
        "selected": selection.selected,
        "reason": np.where(unknown & ~held_out, NOT_CACHED, selection.reason),
    }


def _influence_columns(
    influence: ScoreTable | None, num_samples: int
) -> dict[str, NDArray[np.generic]]:
    """Columns of the score file that the table has too; NaN or null without a score file."""
    names = [name for name in score_format.COLUMNS if name in selection_format.COLUMNS]
    names.remove("sample_index")
    if influence is not None:
        frame = influence.frame
        flags = frame["label_issue"]
        return {
            **{name: frame[name].to_numpy() for name in names if name != "label_issue"},
            "label_issue": flags.astype(object).where(flags.notna(), None).to_numpy(),
        }
    columns: dict[str, NDArray[np.generic]] = {name: np.full(num_samples, np.nan) for name in names}
    columns["label_issue"] = np.full(num_samples, None)
    return columns


def choose(config: SelectConfig, inputs: CleanView, influence: ScoreTable | None) -> Selection:
    """Apply the strategy to the training samples, or its `fallback`."""
    candidates = np.zeros(inputs.num_samples, dtype=bool)
    candidates[inputs.training] = True
    samples = SelectionCandidates(labels=inputs.labels.numpy(), candidates=candidates)
    instead = fallback(config, influence)
    rule = Rule(fraction=config.fraction, class_quota=config.class_quota)
    if instead is None:
        errors = _selecting_errors(config, influence)
        scores = _selecting_scores(config, inputs, influence)
        samples = replace(samples, scores=scores, errors=errors)
        is_beta = config.strategy == "beta"
        rule = replace(
            rule,
            threshold=config.threshold,
            num_errors=0.0 if errors is None else config.num_errors,
            beta=(config.beta_mean, config.beta_concentration) if is_beta else None,
        )
    try:
        found = select_samples(instead or config.strategy, samples, rule=rule, seed=config.seed)
    except ValueError as error:
        raise ConfigError(f"select: {error}") from error
    if instead is None:
        return found
    return replace(found, reason=np.where(candidates, GUESSED[instead], found.reason))


def fallback(config: SelectConfig, influence: ScoreTable | None) -> Fallback | None:
    """Strategy that chooses if the influence scores are no better than a guess; None: they are.

    A fraction is then drawn at random; a threshold keeps every sample.
    """
    if influence is None or not influence.record.diagnostics.is_guess:
        return None
    return "all" if config.fraction is None else "random"


def _selecting_scores(
    config: SelectConfig, inputs: CleanView, influence: ScoreTable | None
) -> NDArray[np.float64] | None:
    """Score that the strategy selects by, higher = keep; None if it needs none."""
    if config.strategy == "correct":
        return inputs.scores.teacher_correct.numpy().astype(np.float64)
    if config.strategy == "el2n":
        return -inputs.scores.el2n.numpy().astype(np.float64)
    if influence is None:
        return None
    if config.strategy == "label-issue-free":
        return 1.0 - influence.frame["label_issue"].fillna(True).to_numpy(dtype=np.float64)
    column = {"beta": "self_influence", "param-change": "undistil_order"}.get(
        config.strategy, config.score
    )
    return sign_of(column) * influence.frame[column].to_numpy(dtype=np.float64)


def _selecting_errors(
    config: SelectConfig, influence: ScoreTable | None
) -> NDArray[np.float64] | None:
    """Standard errors of the selecting score; None if the strategy does not use them."""
    if config.strategy != "influence" or config.num_errors == 0:
        return None
    assert influence is not None, "the strategy reads scores"
    errors = influence.frame[f"{config.score}_se"].to_numpy(dtype=np.float64)
    if np.isnan(errors).all():
        if config.standard_errors is None:
            return None
        raise ConfigError(
            f"{influence.path} has no standard errors: its target has "
            f"{influence.record.diagnostics.num_target:,} samples (expected at least 4). Raise "
            "`prepare.held_out_fraction`, or set `select.standard_errors = 0`."
        )
    return errors
