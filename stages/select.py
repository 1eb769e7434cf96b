"""select: teacher cache -> selection table + soft labels. No model is loaded, no image is read.

Revises the teacher's labels, predicts for every training sample whether distilling it helps the
held-out loss, and writes down what to distil.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pipeline.artefacts import selection as selection_format
from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import SelectionIdentity, SelectionRecord, SelectionTable
from pipeline.artefacts.soft_labels import SoftLabelIdentity, SoftLabels
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.errors import ConfigError
from pipeline.methods.data_selection import Selection, select_samples
from pipeline.methods.label_revision import soft_labels
from pipeline.progress import progress
from pipeline.provenance import short
from pipeline.runtime import num_cores, versions
from pipeline.scoring import Influence, score_influence
from stages.configs import Config, SelectConfig
from stages.requests import find_cache, selection_identity, soft_label_identity
from stages.selection_columns import Clean, spread, table_columns

logger = logging.getLogger(__name__)

TRUSTED_EFFECTIVE_PARAMETERS = 0.25
"""p_eff / N above which first-order scores stop ranking like retraining does."""


def execute(config: Config) -> SelectionTable:
    """Write the soft labels and the selection table, unless they exist; return the table."""
    torch.set_num_threads(num_cores())
    dataset = Dataset.open(config.data_folder)
    cache = find_cache(config, dataset)
    _write_soft_labels(config, cache)
    identity = selection_identity(config, cache, dataset)
    path = selection_format.selection_path(config.selections_folder, identity.id)
    if path.exists():
        table = SelectionTable.open(path)
        logger.info("%s exists: %s, nothing to do", path, describe(table.record))
        return table
    inputs = Clean.read(cache, dataset)
    influence = _influence(config.select, inputs, cache) if identity.influence else None
    selection = _select(config.select, inputs, influence)
    record = _record(identity, inputs, influence, selection, cache)
    columns = table_columns(inputs, influence, selection, config.select)
    selection_format.write(path, record=record, columns=columns)
    logger.info("%s: %s", path, describe(record))
    _warn(record)
    return SelectionTable.open(path)


def describe(record: SelectionRecord) -> str:
    """One line about a selection."""
    share = record.num_selected / max(record.num_candidates, 1)
    wrong = record.num_wrong_selected / max(record.num_wrong, 1)
    auc = "" if record.wrong_row_auc is None else f", AUC {record.wrong_row_auc:.3f} for wrong rows"
    return (
        f"{record.identity.strategy} keeps {record.num_selected:,} of "
        f"{record.num_candidates:,} rows ({100 * share:.1f} %), {100 * wrong:.1f} % of the "
        f"{record.num_wrong:,} wrong ones{auc}, id {short(record.id)}"
    )


def _write_soft_labels(config: Config, cache: TeacherCache) -> None:
    identity = soft_label_identity(config.select, cache)
    path = soft_format.soft_label_path(config.selections_folder, identity.id)
    if path.exists():
        SoftLabels.open(path)
        logger.info("%s exists, nothing to do", path)
        return
    shape = (len(identity.views), cache.shape.num_samples, cache.shape.num_classes)
    soft_format.write(
        path, identity=identity, views=_revised(identity, cache, eta=config.select.eta), shape=shape
    )
    logger.info("%s: %d views of %s soft labels", path, shape[0], f"{shape[1]:,}")


def _revised(
    identity: SoftLabelIdentity, cache: TeacherCache, *, eta: float
) -> Iterator[NDArray[np.float16]]:
    """The soft labels of each view, revised in float32."""
    labels = torch.from_numpy(cache.labels)
    with progress("revise labels", total=len(identity.views), unit="views") as bar:
        for view in identity.views:
            revised = soft_labels(
                torch.from_numpy(cache.logits(view)),
                labels,
                revision=identity.revision,
                eta=eta,
                temperature=identity.revise_at,
            )
            yield revised.half().numpy()
            bar.advance(1)


def _influence(config: SelectConfig, inputs: Clean, cache: TeacherCache) -> Influence:
    """Scores of the training rows against the held-out ones."""
    settings = config.influence
    augmented = settings.views == "augmented"
    if augmented and cache.shape.num_views == 1:
        raise ConfigError(
            f"select.influence.views is 'augmented' and {cache.path} has the clean view only. "
            'Set `select.influence.views = "clean"`, or cache views (`views.count`).'
        )
    views = tuple(range(1, cache.shape.num_views)) if augmented else (0,)
    revision = config.revision if settings.labels == "revised" else "none"

    def targets(view: int) -> Tensor:
        return soft_labels(
            torch.from_numpy(cache.logits(view))[inputs.training],
            inputs.labels[inputs.training],
            revision=revision,
            eta=config.eta,
            temperature=settings.temperature,
        )

    return score_influence(
        cache,
        training=inputs.training,
        held_out=inputs.held_out,
        soft_labels=torch.stack([targets(view) for view in views]),
        views=views,
        kd_weight=settings.kd_weight,
        temperature=settings.temperature,
        l2=settings.l2,
    )


def _select(config: SelectConfig, inputs: Clean, influence: Influence | None) -> Selection:
    """Apply the strategy to the training rows."""
    candidates = np.zeros(inputs.num_samples, dtype=bool)
    candidates[inputs.training] = True
    scores = None
    if influence is not None:
        scores = spread(influence.distilled.scores.dloss_undistill, inputs).mean
    correct = inputs.scores.teacher_correct.numpy() if config.strategy == "correct" else None
    try:
        return select_samples(
            config.strategy,
            labels=inputs.labels.numpy(),
            candidates=candidates,
            seed=config.seed,
            scores=scores,
            teacher_correct=correct,
            fraction=config.fraction,
            class_quota=config.class_quota,
        )
    except ValueError as error:
        raise ConfigError(f"select: {error}") from error


def _record(
    identity: SelectionIdentity,
    inputs: Clean,
    influence: Influence | None,
    selection: Selection,
    cache: TeacherCache,
) -> SelectionRecord:
    wrong = ~inputs.scores.teacher_correct[inputs.training].numpy()
    chosen = selection.selected[inputs.training]
    auc, gain = None, None
    if influence is not None and influence.distilled.scores.dloss_undistill is not None:
        scores = influence.distilled.scores.dloss_undistill.mean.numpy()
        auc = float(roc_auc_score(wrong, -scores)) if 0 < wrong.sum() < len(wrong) else None
        gain = float(-scores[~chosen].sum())
    solves = [] if influence is None else [influence.distilled.record, influence.hard.record]
    return SelectionRecord(
        id=identity.id,
        identity=identity,
        num_selected=int(chosen.sum()),
        num_candidates=len(chosen),
        num_wrong=int(wrong.sum()),
        num_wrong_selected=int((wrong & chosen).sum()),
        wrong_row_auc=auc,
        predicted_gain=gain,
        target_in_sample=cache.summary.target_in_sample,
        solves=solves,
        versions=versions(),
    )


def _warn(record: SelectionRecord) -> None:
    """Say what should make a reader doubt the scores."""
    for solved in record.solves:
        if solved.effective_parameters > TRUSTED_EFFECTIVE_PARAMETERS:
            logger.warning(
                "p_eff/N is %.2f %s (expected at most %.2f): first-order scores are not to be "
                "trusted. Set a larger `select.influence.l2`.",
                solved.effective_parameters,
                solved.linearised_at,
                TRUSTED_EFFECTIVE_PARAMETERS,
            )
    if record.solves and record.target_in_sample:
        logger.warning(
            "the teacher's training saw the held-out images, so their loss looks lower than on new "
            "images; the table says target_in_sample."
        )
