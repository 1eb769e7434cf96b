"""select: teacher cache -> selection table + soft labels. No model is loaded, no image is read.

Revises the teacher's labels, predicts for every training sample whether distilling it helps the
held-out loss, and writes down what to distil. Several processes share out the rows that the heads
are fitted to and scored on; the first one writes.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

from pipeline.artefacts import selection as selection_format
from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.dataset import Dataset, read_record
from pipeline.artefacts.scores import ScoreTable
from pipeline.artefacts.selection import (
    SelectionIdentity,
    SelectionRecord,
    SelectionTable,
    require_same_selection,
)
from pipeline.artefacts.soft_labels import RepairReport, SoftLabels
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.influence.repair import TeacherRows, repair_head
from pipeline.methods.data_selection import Selection
from pipeline.provenance import short
from pipeline.runtime.device import num_cores, versions
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.runtime.shared_files import is_missing, write_once
from stages.caches import Caches
from stages.config.root import Config
from stages.selection.columns import CleanView, choose, table_columns
from stages.selection.explain import explained, require_samples
from stages.selection.influence import open_scores
from stages.selection.revise import revise_views
from stages.selection.wording import threshold_warnings
from stages.text import percent

logger = logging.getLogger(__name__)


def execute(config: Config, *, ranks: Ranks = ALONE) -> SelectionTable:
    """Write the soft labels and the selection table, unless they exist; return the table.

    Every one of several ranks returns it. Ranks of machines that share no folder each need the
    data set, and a cache that they can read; every machine gets its copy of what is written.
    """
    torch.set_num_threads(num_cores())
    dataset = Dataset.open(config.data_folder)
    caches = Caches(config=config, dataset=dataset)
    cached = _join(caches)
    identity = caches.identities.selection
    path = selection_format.selection_path(
        config.selections_folder, identity.id, name=config.select.name
    )
    if path.exists():
        require_same_selection(path, identity)
    teacher = _Teacher(config, cached, dataset, ranks=ranks)
    _write_soft_labels(caches, teacher, ranks=ranks)
    if not is_missing(path, ranks):
        table = SelectionTable.open(path)
        logger.info("%s exists: %s, nothing to do", path, describe(table.record))
        return table
    inputs = CleanView.read(teacher.rows, dataset, config.select)
    scores = open_scores(caches, teacher.rows, inputs, ranks=ranks)
    selection = choose(config.select, inputs, scores)
    record = _record(identity, inputs, scores, selection, cached)
    columns = table_columns(inputs, scores, selection)
    write_once(
        path, lambda: selection_format.write(path, record=record, columns=columns), ranks=ranks
    )
    logger.info("%s: %s", path, describe(record))
    table = SelectionTable.open(path)
    for line in threshold_warnings(table):
        logger.warning("%s", line)
    return table


def explain(config: Config, samples: Sequence[int]) -> str:
    """Make or open the selection of ``config``; explain why ``samples`` are kept or dropped.

    Raises:
        ConfigError: if there is no such sample.
    """
    record = read_record(config.data_folder)
    require_samples(record, samples)
    return explained(execute(config), record.class_names, samples)


class _Teacher:
    """The cache's own logits, or repaired ones; repaired when they are first read."""

    def __init__(
        self, config: Config, cached: HydratedCache, dataset: Dataset, *, ranks: Ranks
    ) -> None:
        self._config, self._cached, self._dataset, self._ranks = config, cached, dataset, ranks

    @cached_property
    def rows(self) -> TeacherRows:
        settings = self._config.select
        if settings.repair == "none":
            return self._cached
        self._cached.cache.require_features()
        repaired = repair_head(
            self._cached,
            self._dataset,
            num_folds=settings.influence.folds,
            seed=settings.seed,
            ranks=self._ranks,
        )
        for line in describe_repair(repaired.report):
            logger.info("%s", line)
        return repaired


def _join(caches: Caches) -> HydratedCache:
    """The cache in the order of the data set's images.

    Raises:
        ArtefactNotFound: if there is no cache.
        ArtefactMismatch: if it does not fit the data set.
    """
    config, dataset, cache = caches.config, caches.dataset, caches.training
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
    if cache.is_sparse and config.select.standardise and config.select.repair == "none":
        raise ConfigError(
            f"select.standardise is true and {cache.path} keeps the top logits only (expected all "
            "of them, for their mean and deviation). Set it to false, or cache with `top_k = 0`."
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
        f"{record.num_candidates:,} rows ({percent(share, digits=1)}), "
        f"{percent(wrong, digits=1)} of the {record.num_wrong:,} wrong ones{auc}, "
        f"id {short(record.id)}"
    )


def describe_repair(report: RepairReport) -> Iterator[str]:
    """The repaired teacher beside the original, line by line."""
    for name, quality in (("the teacher's own head", report.before), ("repaired", report.after)):
        yield (
            f"{name}: held out {percent(quality.accuracy)}, loss {quality.loss:.4f}, "
            f"calibration error {quality.calibration_error:.4f}, {quality.num_wrong:,} training "
            "rows wrong"
        )


def _write_soft_labels(caches: Caches, teacher: _Teacher, *, ranks: Ranks) -> None:
    """Make them unless they exist; rank 0 checks every byte of those that do."""
    config, identity = caches.config, caches.identities.soft_labels
    path = soft_format.soft_label_path(config.selections_folder, identity.id)
    if not is_missing(path, ranks):
        if ranks.is_first:
            SoftLabels.open(path)
        logger.info("%s exists, nothing to do", path)
        return
    cached = teacher.rows  # by all ranks, where it is repaired
    eta = config.select.eta
    write_once(
        path, lambda: revise_views(path, identity, cached, caches.dataset, eta=eta), ranks=ranks
    )


def _record(
    identity: SelectionIdentity,
    inputs: CleanView,
    influence: ScoreTable | None,
    selection: Selection,
    cached: HydratedCache,
) -> SelectionRecord:
    wrong = ~inputs.scores.teacher_correct[inputs.training].numpy()
    chosen = selection.selected[inputs.training]
    auc, gain = None, None
    if influence is not None:
        from sklearn.metrics import roc_auc_score  # seconds, which what is there need not wait for

        scores = influence.frame["dloss_undistill"].to_numpy()[inputs.training]
        auc = float(roc_auc_score(wrong, -scores)) if 0 < wrong.sum() < len(wrong) else None
        gain = float(-scores[~chosen].sum())
    target_in_sample = cached.cache.summary.target_in_sample
    if influence is not None:
        target_in_sample = influence.record.diagnostics.target_in_sample
    return SelectionRecord(
        id=identity.id,
        identity=identity,
        num_selected=int(chosen.sum()),
        num_candidates=len(chosen),
        num_wrong=int(wrong.sum()),
        num_wrong_selected=int((wrong & chosen).sum()),
        wrong_row_auc=auc,
        predicted_gain=gain,
        target_in_sample=target_in_sample,
        num_not_cached=cached.joined.num_extra,
        accepted=list(cached.joined.accepted),
        scores=None if influence is None else influence.record,
        versions=versions(),
    )
