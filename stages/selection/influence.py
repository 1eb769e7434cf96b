"""The influence scores of a configuration: the score file, computed unless it exists."""

import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts import scores as score_format
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.scores import Diagnostics, ScoreIdentity, ScoreRecord, ScoreTable
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.influence.inputs import InfluenceSettings
from pipeline.influence.repair import TeacherRows
from pipeline.influence.scoring import Influence, score_influence
from pipeline.provenance import array_sha256, short
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.runtime.shared_files import is_missing, write_once
from stages.caches import Caches
from stages.config.select import SelectConfig
from stages.identities import influence_target
from stages.selection.columns import CleanView
from stages.selection.sources import Sources
from stages.selection.wording import warnings_of

logger = logging.getLogger(__name__)


def open_scores(
    caches: Caches, cached: TeacherRows, inputs: CleanView, *, ranks: Ranks = ALONE
) -> ScoreTable | None:
    """Open the score file of a configuration, computed unless it exists; None if it needs none.

    Several ranks score the samples together, and each one opens the file.

    Raises:
        ArtefactMismatch: if the cache has no features, or another cache cannot be the target.
        ConfigError: if there are too few samples, or classes are missing.
        PipelineError: if a head cannot be fitted.
    """
    config, dataset, identity = caches.config, caches.dataset, caches.identities.scores
    if identity is None:
        return None
    path = score_format.score_path(config.selections_folder, identity.id)
    if not is_missing(path, ranks):
        table = ScoreTable.open(path)
        table.require_samples(dataset.train.samples)
        if table.id != identity.id:
            raise ArtefactMismatch(
                f"{path} has the scores of other settings: id {short(table.id)} (expected "
                f"{short(identity.id)}). Remove it, or rename it to its old name."
            )
        logger.debug("%s exists, nothing to do", path)
        return table
    _require_rows(config.select, cached.cache, inputs)
    sources = Sources.of(caches, cached, inputs, ranks=ranks)
    influence = score_influence(sources.rows, sources.targets, _settings(config.select))
    record = _record(identity, influence, sources, leak=_leak(caches, cached.cache))
    columns = _columns(influence, inputs)
    write_once(path, lambda: score_format.write(path, record=record, columns=columns), ranks=ranks)
    _warn(record.diagnostics)
    return ScoreTable.open(path)


def _require_rows(config: SelectConfig, cache: TeacherCache, inputs: CleanView) -> None:
    """Reject data that no head can be fitted to."""
    cache.require_features()
    target = influence_target(config, cache)
    needed = [("training", inputs.training)]
    if target == "held-out" or config.influence.l2 == "auto":
        needed.append(("held-out", inputs.held_out))
    for name, rows in needed:
        if len(rows) == 0:
            raise ConfigError(
                f"{cache.path} has none of the {name} images (expected some, for influence). "
                "Run `heartcut cache-teacher` on this data, or choose another `select.strategy`."
            )
    classes = torch.unique(inputs.labels[inputs.training])
    if len(classes) < 2:
        raise ConfigError(
            f"{cache.path}: the training samples have {len(classes)} class (expected at least 2, "
            "for influence). Choose another `select.strategy`."
        )
    absent = sorted(set(classes.tolist()) - set(inputs.labels[inputs.held_out].tolist()))
    if absent and target == "held-out":
        raise ConfigError(
            f"{cache.path}: the held-out samples have none of class {absent[0]}"
            f"{f' and {len(absent) - 1} others' if len(absent) > 1 else ''} (expected some of "
            "each, for influence). Raise `prepare.held_out_fraction`, or choose another "
            "`select.strategy`."
        )


def _settings(config: SelectConfig) -> InfluenceSettings:
    settings = config.influence
    return settings.produce(
        InfluenceSettings,
        l2=None if settings.l2 == "auto" else settings.l2,
        param_change=config.strategy == "param-change",
        seed=config.seed,
    )


def _record(
    identity: ScoreIdentity,
    influence: Influence,
    sources: Sources,
    *,
    leak: tuple[float, float] | None,
) -> ScoreRecord:
    solves = influence.solves
    return ScoreRecord(
        id=identity.id,
        identity=identity,
        solves=solves,
        diagnostics=Diagnostics(
            effective_parameters=max(solve.effective_parameters for solve in solves),
            sum_rule_error=max(solve.sum_rule_error for solve in solves),
            target_weight_cosine=influence.details.target_weight_cosine,
            l2_grid=influence.l2_grid,
            rank_stability=influence.details.rank_stability,
            leak=None if leak is None else leak[0],
            leak_error=None if leak is None else leak[1],
            target=sources.target,
            target_digest=array_sha256(sources.target_keys),
            target_in_sample=sources.target_in_sample,
            num_target=len(sources.target_keys),
            second_order_gain=influence.details.second_order_gain,
            difficulty="exact" if influence.is_exact else "EK-FAC",
            gain_over_guess=influence.gain_over_guess,
        ),
    )


def _columns(influence: Influence, inputs: CleanView) -> dict[str, NDArray[np.generic]]:
    """Columns of the score file; samples without scores have NaN, -1 or null."""
    columns: dict[str, NDArray[np.generic]] = {"sample_index": np.arange(inputs.num_samples)}
    for name in score_format.COLUMNS:
        if name == "sample_index":
            continue
        values = influence.columns.get(name)
        columns[name] = _spread(values, inputs, missing=_MISSING.get(name, np.nan))
    return columns


_MISSING = {"label_issue": None, "undistil_order": -1}


def _spread(
    values: NDArray[np.generic] | None, inputs: CleanView, *, missing: float | None
) -> NDArray[np.generic]:
    """Move the values of the training samples to their sample indices."""
    dtype = np.dtype(object) if missing is None else np.result_type(type(missing))
    out = np.full(inputs.num_samples, missing, dtype=dtype)
    if values is not None:
        out[inputs.training.numpy()] = values
    return out


def _leak(caches: Caches, cache: TeacherCache) -> tuple[float, float] | None:
    """Teacher's held-out minus test accuracy, and its standard error; None if one is not known.

    The test accuracy was printed when the images were cached. It decides nothing here.
    """
    test = caches.test
    if test is None or test.manifest.identity.weights != cache.manifest.identity.weights:
        return None
    held_out, unseen = cache.summary.accuracy_held_out, test.summary.accuracy_training
    if not held_out or not unseen:
        return None
    num_held_out, num_unseen = len(caches.dataset.held_out), test.shape.num_samples
    share = (held_out[0] * num_held_out + unseen[0] * num_unseen) / (num_held_out + num_unseen)
    error = math.sqrt(share * (1 - share) * (1 / num_held_out + 1 / num_unseen))
    return held_out[0] - unseen[0], error


def _warn(found: Diagnostics) -> None:
    for line in warnings_of(found):
        logger.warning("%s", line)
