"""select: teacher cache -> selection table + soft labels. No model is loaded, no image is read.

Revises the teacher's labels, predicts how distilling each training sample changes the held-out
loss, and writes the samples to distil. Several processes share the rows that the heads are fitted
to and scored on; the first one writes.
"""

import logging
from collections.abc import Sequence
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
from pipeline.runtime.device import num_cores, versions
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.runtime.shared_files import is_missing, write_once
from stages.caches import Caches
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.selection.columns import CleanView, choose, fallback, table_columns
from stages.selection.explain import explained, require_samples
from stages.selection.influence import open_scores
from stages.selection.revise import revise_views
from stages.selection.wording import threshold_warnings
from stages.text import counted, percent

logger = logging.getLogger(__name__)


@with_complete_commands
def execute(config: Config, *, ranks: Ranks = ALONE) -> SelectionTable:
    """Write the soft labels and the selection table, unless they exist; return the table.

    All ranks return it. Machines that share no folder each need the data set and a cache that they
    can read, and each gets a copy of the results.
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
        logger.info("%s exists, nothing to do: %s", path, describe(table.record))
        return table
    inputs = CleanView.read(teacher.rows, dataset, config.select)
    scores = open_scores(caches, teacher.rows, inputs, ranks=ranks)
    selection = choose(config.select, inputs, scores)
    record = _record(identity, inputs, scores, selection, cached)
    record = record.model_copy(update={"fallback": fallback(config.select, scores)})
    columns = table_columns(inputs, scores, selection)
    write_once(
        path, lambda: selection_format.write(path, record=record, columns=columns), ranks=ranks
    )
    logger.info("%s: %s", path, describe(record))
    logger.debug("%s: %s", path, _details(record))
    table = SelectionTable.open(path)
    for line in threshold_warnings(table):
        logger.warning("%s", line)
    return table


@with_complete_commands
def explain(config: Config, samples: Sequence[int]) -> str:
    """Make or open the selection of ``config``; explain why ``samples`` are kept or dropped.

    Raises:
        ConfigError: if a sample does not exist.
    """
    record = read_record(config.data_folder)
    require_samples(record, samples)
    return explained(execute(config), record.class_names, samples)


class _Teacher:
    """The cached logits, or repaired ones; the repair is computed at the first use."""

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
        logger.info("%s", describe_repair(repaired.report))
        return repaired


def _join(caches: Caches) -> HydratedCache:
    """The cache in the order of the data set's images.

    Raises:
        ArtefactNotFound: if there is no cache.
        ArtefactMismatch: if its classes or samples do not fit the data set.
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
            f"select.accept_mismatch has 'labels' and {cache.path} keeps only the top logits and "
            "the label's (expected all logits). Correct the labels, or set `cache_teacher.top_k = "
            "0` and run `heartcut cache-teacher`."
        )
    if cache.is_sparse and config.select.standardise and config.select.repair == "none":
        raise ConfigError(
            f"select.standardise is true and {cache.path} keeps only the top logits (expected all "
            "logits, for their mean and deviation). Set `select.standardise = false`, or set "
            "`cache_teacher.top_k = 0` and run `heartcut cache-teacher`."
        )
    place = str(dataset.train.path)
    joined = join_samples(cache, dataset.train.samples, place=place, accept=accept)
    if joined.num_extra:
        logger.warning(
            "%s lacks %s of the %s images of %s: they are trained with their hard labels",
            cache.path,
            f"{joined.num_extra:,}",
            f"{len(joined.rows):,}",
            place,
        )
    for field in joined.accepted:
        logger.warning("accepted: %s has other %s than %s", place, field, cache.path)
    return HydratedCache(cache=cache, joined=joined, folder=config.caches_folder)


def describe(record: SelectionRecord) -> str:
    """Describe a selection in one line."""
    share = record.num_selected / max(record.num_candidates, 1)
    chosen_by = record.identity.strategy
    if record.fallback is not None:
        chosen_by = f"{record.fallback} (instead of {chosen_by})"
    return (
        f"{chosen_by} keeps {record.num_selected:,} of "
        f"{counted(record.num_candidates, 'sample')} ({percent(share, digits=1)}), and "
        f"{record.num_wrong_selected:,} of the {record.num_wrong:,} that the teacher gets wrong"
    )


def _details(record: SelectionRecord) -> str:
    auc = record.wrong_row_auc
    return f"id {record.id}" + ("" if auc is None else f", AUC {auc:.3f} for wrong samples")


def describe_repair(report: RepairReport) -> str:
    """Compare the repaired teacher with the original in one line."""
    before, after = report.before, report.after
    return (
        f"head repair: held-out accuracy {percent(before.accuracy)} -> {percent(after.accuracy)}, "
        f"loss {before.loss:.4f} -> {after.loss:.4f}, calibration error "
        f"{before.calibration_error:.4f} -> {after.calibration_error:.4f}, wrong training samples "
        f"{before.num_wrong:,} -> {after.num_wrong:,}"
    )


def _write_soft_labels(caches: Caches, teacher: _Teacher, *, ranks: Ranks) -> None:
    """Write the soft labels unless they exist; rank 0 checks every byte of existing ones."""
    config, identity = caches.config, caches.identities.soft_labels
    path = soft_format.soft_label_path(config.selections_folder, identity.id)
    if not is_missing(path, ranks):
        if ranks.is_first:
            SoftLabels.open(path)
        logger.debug("%s exists, nothing to do", path)
        return
    cached = teacher.rows  # on all ranks: they share the repair
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
        from sklearn.metrics import roc_auc_score  # takes seconds to import, so only here

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
