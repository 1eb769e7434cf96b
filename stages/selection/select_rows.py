"""Which rows are distilled: a strategy with its settings, applied to the training rows."""

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.scores import ScoreTable
from pipeline.errors import ConfigError
from pipeline.methods.data_selection import Selection, select_samples
from pipeline.methods.data_selection_rules import Rule, Samples
from stages.config.select import SelectConfig
from stages.selection.columns import Clean
from stages.selection.wording import sign_of


def choose(config: SelectConfig, inputs: Clean, influence: ScoreTable | None) -> Selection:
    """Apply the strategy to the training rows."""
    candidates = np.zeros(inputs.num_samples, dtype=bool)
    candidates[inputs.training] = True
    errors = _errors(config, influence)
    rule = Rule(
        fraction=config.fraction,
        threshold=config.threshold,
        num_errors=0.0 if errors is None else config.num_errors,
        class_quota=config.class_quota,
        beta=(config.beta_mean, config.beta_concentration) if config.strategy == "beta" else None,
    )
    scores = _scores(config, inputs, influence)
    try:
        samples = Samples(
            labels=inputs.labels.numpy(), candidates=candidates, scores=scores, errors=errors
        )
        return select_samples(config.strategy, samples, rule=rule, seed=config.seed)
    except ValueError as error:
        raise ConfigError(f"select: {error}") from error


def _scores(
    config: SelectConfig, inputs: Clean, influence: ScoreTable | None
) -> NDArray[np.float64] | None:
    """What the strategy reads of every sample; higher = keep."""
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


def _errors(config: SelectConfig, influence: ScoreTable | None) -> NDArray[np.float64] | None:
    """Standard errors of the selecting score, where it is to be read with them."""
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
