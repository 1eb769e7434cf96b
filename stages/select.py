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
from torch.nn import functional as F

from pipeline.artefacts import selection as selection_format
from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.cache_join import join_samples
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.hydration import HydratedCache
from pipeline.artefacts.selection import SelectionIdentity, SelectionRecord, SelectionTable
from pipeline.artefacts.soft_labels import SoftLabelIdentity, SoftLabels
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.methods.data_selection import Selection, select_samples
from pipeline.methods.label_revision import soft_labels
from pipeline.methods.sparse_labels import pack
from pipeline.progress import Progress, progress
from pipeline.provenance import short
from pipeline.runtime import num_cores, versions
from pipeline.scoring import Influence, score_influence
from stages.cache_places import find_cache
from stages.configs import Config, SelectConfig
from stages.requests import selection_identity, soft_label_identity
from stages.selection_columns import Clean, spread, table_columns

logger = logging.getLogger(__name__)

TRUSTED_EFFECTIVE_PARAMETERS = 0.25
"""p_eff / N above which first-order scores stop ranking like retraining does."""


def execute(config: Config) -> SelectionTable:
    """Write the soft labels and the selection table, unless they exist; return the table."""
    torch.set_num_threads(num_cores())
    dataset = Dataset.open(config.data_folder)
    cached = _join(config, dataset)
    _write_soft_labels(config, cached, dataset)
    identity = selection_identity(config, cached.cache, dataset)
    path = selection_format.selection_path(config.selections_folder, identity.id)
    if path.exists():
        table = SelectionTable.open(path)
        logger.info("%s exists: %s, nothing to do", path, describe(table.record))
        return table
    inputs = Clean.read(cached, dataset, config.select)
    influence = _influence(config.select, inputs, cached) if identity.influence else None
    selection = _select(config.select, inputs, influence)
    record = _record(identity, inputs, influence, selection, cached)
    columns = table_columns(inputs, influence, selection)
    selection_format.write(path, record=record, columns=columns)
    logger.info("%s: %s", path, describe(record))
    _warn(record)
    return SelectionTable.open(path)


def _join(config: Config, dataset: Dataset) -> HydratedCache:
    """The cache in the order of the data set's images.

    Raises:
        ArtefactNotFound: if there is no cache.
        ArtefactMismatch: if it does not fit the data set.
    """
    cache = find_cache(config, dataset)
    if cache.shape.num_classes != dataset.num_classes:
        raise ArtefactMismatch(
            f"{cache.path} has {cache.shape.num_classes} classes (expected {dataset.num_classes}, "
            f"as {dataset.folder}). Run `heartcut cache-teacher` with a teacher of these classes."
        )
    accept = config.select.accept_mismatch
    if cache.is_sparse and "labels" in accept:
        raise ConfigError(
            f"select.accept_mismatch has 'labels' and {cache.path} keeps the top logits and the "
            "label's only (expected all logits). Correct the labels, or cache with `top_k = 0`."
        )
    place = str(dataset.train.path)
    joined = join_samples(cache, dataset.train.samples, place=place, accept=accept)
    if joined.num_extra:
        logger.warning(
            "%s lacks %s of the %s images of %s: they are supervised by their hard labels",
            cache.path,
            f"{joined.num_extra:,}",
            f"{len(joined.rows):,}",
            place,
        )
    for field in joined.accepted:
        logger.warning("%s has other %s than %s, as accepted", place, field, cache.path)
    return HydratedCache(cache=cache, joined=joined, folder=config.caches_folder)


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


def _write_soft_labels(config: Config, cached: HydratedCache, dataset: Dataset) -> None:
    identity = soft_label_identity(config.select, cached.cache, dataset)
    path = soft_format.soft_label_path(config.selections_folder, identity.id)
    if path.exists():
        SoftLabels.open(path)
        logger.info("%s exists, nothing to do", path)
        return
    labels = torch.from_numpy(dataset.train.samples.labels)
    with progress(
        "revise labels", total=len(identity.views) * cached.num_samples, unit="rows"
    ) as bar:
        soft_format.write(
            path,
            identity=identity,
            views=(
                _revised(identity, cached, view, labels, eta=config.select.eta, bar=bar)
                for view in identity.views
            ),
            num_samples=cached.num_samples,
            num_classes=dataset.num_classes,
        )
    logger.info("%s: %d views of %s labels", path, len(identity.views), f"{cached.num_samples:,}")


def _revised(
    identity: SoftLabelIdentity,
    cached: HydratedCache,
    view: int,
    labels: Tensor,
    *,
    eta: float,
    bar: Progress,
) -> Iterator[NDArray[np.float16] | NDArray[np.uint16]]:
    """The soft labels of one view, revised in float32; hard ones where the cache has none."""
    known = torch.from_numpy(cached.joined.known)
    for block in cached.logit_blocks(view, temperature=identity.revise_at):
        own, seen = labels[block.samples], known[block.samples]
        revised = F.one_hot(own, block.logits.shape[1]).float()
        revised[seen] = soft_labels(
            block.logits[seen],
            own[seen],
            revision=identity.revision,
            eta=eta,
            temperature=identity.revise_at,
        )
        if block.classes is None:
            yield revised.half().numpy()
        else:
            yield pack(revised, block.classes, own).numpy()
        bar.advance(len(own))


def _influence(config: SelectConfig, inputs: Clean, cached: HydratedCache) -> Influence:
    """Scores of the training rows against the held-out ones."""
    settings, cache = config.influence, cached.cache
    for name, rows in (("training", inputs.training), ("held-out", inputs.held_out)):
        if len(rows) == 0:
            raise ConfigError(
                f"{cache.path} has none of the {name} images (expected some, for influence). "
                "Cache this data, or choose another `select.strategy`."
            )
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
            cached.logits(view, temperature=settings.temperature)[inputs.training],
            inputs.labels[inputs.training],
            revision=revision,
            eta=config.eta,
            temperature=settings.temperature,
        )

    return score_influence(
        cached,
        labels=inputs.labels,
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
    cached: HydratedCache,
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
        target_in_sample=cached.cache.summary.target_in_sample,
        num_not_cached=cached.joined.num_extra,
        accepted=list(cached.joined.accepted),
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
