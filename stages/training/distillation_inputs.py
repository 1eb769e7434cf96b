"""Inputs of distillation: a selection, and the soft labels and features that belong to it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import Mismatch, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import SelectionTable, require_same_selection, selection_path
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.data.supervision import Supervision
from pipeline.data.view_specs import Views, views_from_json
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.methods.catalogue import refusal
from pipeline.provenance import short
from stages.caches import Caches
from stages.config.root import Config


@dataclass(frozen=True, kw_only=True)
class DistillationInputs:
    """A selection and the soft labels that belong to it."""

    table: SelectionTable
    soft: SoftLabels

    @property
    def view_spec(self) -> Views:
        """The views that the soft labels were made for."""
        return views_from_json(self.soft.record.identity.view_spec)

    def supervision(self, features: "TeacherFeatures | None") -> Supervision:
        """Soft labels and features that are joined to the images."""
        selected = self.table.distilled
        return Supervision(
            soft_labels=self.soft.views(),
            selected=selected if features is None else selected & features.known,
            labels=self.table.labels,
            by_view=self.soft.by_view,
            num_classes=self.soft.num_classes,
            top_k=self.soft.top_k,
            features=() if features is None else features.views,
        )


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """The teacher's cached features."""

    cache: TeacherCache
    known: NDArray[np.bool_]
    """True where the cache has the sample, (N,)."""
    views: list[NDArray[np.float16]]
    """Features of each view of the soft labels, (N, D), memory-mapped."""

    @property
    def dim(self) -> int:
        """Number of features, D."""
        return self.cache.shape.num_features


def open_distillation_inputs(caches: Caches) -> DistillationInputs:
    """Open the selection and its soft labels, and check that they fit the data set.

    Raises:
        ArtefactNotFound: if `select` has not made them.
        ArtefactMismatch: if they belong to other data or not to each other.
    """
    config, dataset = caches.config, caches.dataset
    settings = config.train_student
    path = settings.selection
    if path is None:
        wanted = caches.identities.selection
        path = selection_path(config.selections_folder, wanted.id, name=config.select.name)
        if not path.exists():
            raise ArtefactNotFound(
                f"{config.selections_folder} has no selection for these settings. "
                "Run `heartcut select`."
            )
        require_same_selection(path, wanted)
    table = SelectionTable.open(path)
    table.require_samples(dataset.train.samples.keys, dataset.train.samples.labels)
    _require_same_held_out(table, dataset)
    soft = SoftLabels.open(settings.soft_labels or _soft_labels_of(table, config))
    _require_belonging(table, soft, dataset)
    return DistillationInputs(table=table, soft=soft)


def _soft_labels_of(table: SelectionTable, config: Config) -> Path:
    """Path of a table's soft labels: next to the table, or else in the workspace.

    Raises:
        ArtefactNotFound: if there are none.
    """
    places = list(dict.fromkeys([table.path.parent, config.selections_folder]))
    paths = [soft_label_path(place, table.record.identity.soft_labels) for place in places]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise ArtefactNotFound(
            f"{table.path} has no soft labels: {' and '.join(map(str, paths))} "
            f"{'do' if len(paths) > 1 else 'does'} not exist. Run `heartcut select`, or name their "
            "folder with `--set train_student.soft_labels=FOLDER`."
        )
    return found


def _require_same_held_out(table: SelectionTable, dataset: Dataset) -> None:
    found = table.record.identity.held_out
    if found != dataset.held_out_digest:
        raise ArtefactMismatch(
            f"{table.path} was made with other held-out images: {short(found)} "
            f"(expected {short(dataset.held_out_digest)}). Run `heartcut select` on this data."
        )


def _require_belonging(table: SelectionTable, soft: SoftLabels, dataset: Dataset) -> None:
    found, wanted = soft.record.identity.cache, table.record.identity.cache
    if found != wanted:
        raise ArtefactMismatch(
            f"{soft.path} was made from another teacher cache than {table.path}: {short(found)} "
            f"(expected {short(wanted)}). Run `heartcut select`, or pass a selection and soft "
            "labels of one cache."
        )
    shape = (dataset.train.num_samples, dataset.num_classes)
    if (soft.record.shape[1], soft.num_classes) != shape:
        raise ArtefactMismatch(
            f"{soft.path} has {soft.record.shape[1]:,} rows of {soft.num_classes} classes "
            f"(expected {shape[0]:,} of {shape[1]}). Run `heartcut select` on this data."
        )
    rows = dataset.train.samples.in_order
    if soft.record.identity.rows != rows:
        raise ArtefactMismatch(
            f"{soft.path} has other rows than {dataset.train.path}, or in another order: "
            f"{short(soft.record.identity.rows)} (expected {short(rows)}). Run `heartcut select` "
            "on this data."
        )


def require_teachable(config: Config, distillation: DistillationInputs, dataset: Dataset) -> None:
    """Reject a method without its inputs, and an empty selection.

    Raises:
        ArtefactMismatch: with the reason.
    """
    reason = _reason(config, distillation, has_features=True)  # `open_features` checks
    if reason is not None:
        raise ArtefactMismatch(f"{distillation.soft.path}: {reason}")
    strategy = distillation.table.record.identity.strategy
    num_rows = len(dataset.training)
    if strategy != "none" and not distillation.table.distilled[dataset.training].any():
        raise ArtefactMismatch(
            f"{distillation.table.path} selects 0 of {num_rows:,} training samples (expected at "
            f"least 1 for strategy {strategy!r}). Lower `select.threshold`, set `select.fraction`, "
            "or set `train_student.distil = false`."
        )


def _reason(config: Config, distillation: DistillationInputs, *, has_features: bool) -> str | None:
    """Reason why the method cannot be trained; None if it can."""
    labels = distillation.soft.record.identity
    return refusal(
        config.train_student.method,
        has_features=has_features,
        is_sparse=distillation.soft.top_k > 0,
        temperature=labels.temperature,
        standardised=labels.standardise,
    )


def open_features(caches: Caches, distillation: DistillationInputs) -> TeacherFeatures:
    """Open the features of the selection's cache, in the data set's order.

    Raises:
        ArtefactNotFound: if the cache does not exist any more.
        ArtefactMismatch: if it is another cache, or has no features.
    """
    config, dataset, cache = caches.config, caches.dataset, caches.training
    found, wanted = cache.id, distillation.table.record.identity.cache
    if found != wanted:
        raise ArtefactMismatch(
            f"{cache.path} is not the cache of {distillation.table.path}: {short(found)} (expected "
            f"{short(wanted)}). Set `select.cache` to cache {short(wanted)}."
        )
    reason = _reason(config, distillation, has_features=cache.manifest.identity.features)
    if reason is not None:
        raise ArtefactMismatch(f"{cache.path}: {reason}")
    accepted = distillation.soft.record.identity.accepted
    differences: tuple[Mismatch, ...] = ("labels", "pixels")
    joined = join_samples(
        cache,
        dataset.train.samples,
        place=str(dataset.train.path),
        accept=[difference for difference in differences if difference in accepted],
    )
    hydrated = HydratedCache(cache=cache, joined=joined, folder=config.caches_folder)
    views = [hydrated.features(view) for view in distillation.soft.record.identity.views]
    return TeacherFeatures(cache=cache, known=joined.known, views=views)
