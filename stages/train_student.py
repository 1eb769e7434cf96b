"""train-student: betons + selection + soft labels -> run. Neither the teacher nor its weights."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache_join import ANY_LABELS, join_samples
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.run import Inputs, Run, run_id, run_path
from pipeline.artefacts.selection import (
    SelectionTable,
    require_same_selection,
    selection_path,
)
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.data.loaders import Supervision
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import Json, array_sha256, short
from pipeline.training import plain_loss, three_term_loss
from stages.cache_places import find_cache, made_cache
from stages.configs import Config
from stages.requests import (
    fresh_views,
    selection_identity,
    training_settings,
    view_spec,
)
from stages.training_run import TeacherClasses, Training, describe, train

logger = logging.getLogger(__name__)


def execute(config: Config) -> Run:
    """Train the student of ``config``, unless the same run exists."""
    dataset = Dataset.open(config.data_folder)
    training = _training(config, dataset)
    settings = config.train_student
    path = run_path(
        config.runs_folder,
        name=settings.name,
        seed=settings.seed,
        id=run_id(training.identity, training.inputs),
    )
    if path.exists():
        run = Run.open(path)
        logger.info("%s exists: %s, nothing to do", path, describe(run.result))
        return run
    return train(training, path)


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """A selection and the soft labels that belong to it."""

    table: SelectionTable
    soft: SoftLabels

    @property
    def view_spec(self) -> ViewSpec:
        """The views that the soft labels were made of."""
        return ViewSpec.from_json(self.soft.record.identity.view_spec)

    @property
    def supervision(self) -> Supervision:
        return Supervision(
            soft_labels=self.soft.views(),
            selected=self.table.selected,
            labels=self.table.labels,
            by_view=self.soft.by_view,
            num_classes=self.soft.num_classes,
            top_k=self.soft.top_k,
        )


def _training(config: Config, dataset: Dataset) -> Training:
    lesson = _lesson(config, dataset) if config.train_student.distil else None
    views = _views(config, lesson)
    settings = config.train_student
    identity: dict[str, Json] = {**training_settings(settings), "views": views.as_json()}
    if lesson is not None:
        # A table may have been edited by hand: its id says where it came from, not what it holds.
        identity["selected"] = array_sha256(lesson.table.selected)
    return Training(
        settings=settings,
        identity=identity,
        inputs=_inputs(dataset, lesson),
        dataset=dataset,
        rows=dataset.training,
        views=views,
        loss=plain_loss
        if lesson is None
        else three_term_loss(
            lambda_ce=settings.lambda_ce,
            lambda_kd=settings.lambda_kd,
            temperature=lesson.soft.record.identity.temperature,
        ),
        supervision=None if lesson is None else lesson.supervision,
        num_distilled=0 if lesson is None else int(lesson.table.selected[dataset.training].sum()),
        teacher=_teacher_classes(config, dataset, lesson),
    )


def _lesson(config: Config, dataset: Dataset) -> _Lesson:
    """Open the selection and its soft labels; refuse strangers.

    Raises:
        ArtefactNotFound: if `select` has not made them.
        ArtefactMismatch: if they belong to other data or not to each other.
    """
    settings = config.train_student
    path = settings.selection
    if path is None:
        cache = find_cache(config, dataset)
        wanted = selection_identity(config, cache, dataset)
        path = selection_path(config.selections_folder, wanted.id, name=config.select.name)
        if not path.exists():
            raise ArtefactNotFound(
                f"{config.selections_folder} has no selection for these settings. "
                "Run `heartcut select` with the same configuration."
            )
        require_same_selection(path, wanted)
    table = SelectionTable.open(path)
    table.require_samples(dataset.train.samples.keys, dataset.train.samples.labels)
    _require_same_held_out(table, dataset)
    soft_path = settings.soft_labels
    if soft_path is None:
        soft_path = soft_label_path(path.parent, table.record.identity.soft_labels)
    soft = SoftLabels.open(soft_path)
    _require_belonging(table, soft, dataset)
    return _Lesson(table=table, soft=soft)


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
            f"(expected {short(wanted)}). Run `heartcut select`, or pass the ones that belong "
            "together."
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


def _views(config: Config, lesson: _Lesson | None) -> ViewSpec:
    """The augmentation that the student sees.

    Raises:
        ArtefactMismatch: if cached views are asked for and the soft labels have none.
    """
    wanted = config.train_student.augmentation
    cached_fit = lesson is not None and lesson.soft.by_view
    if wanted == "fresh" and cached_fit:
        raise ArtefactMismatch(
            "train_student.augmentation is 'fresh' and the soft labels belong to cached views "
            '(expected labels of the clean view). Remove it, or set `select.soft_views = "clean"`.'
        )
    if lesson is not None and lesson.soft.by_view:
        return lesson.view_spec
    if wanted == "cached":
        return view_spec(config.views)
    return fresh_views(config)


def _inputs(dataset: Dataset, lesson: _Lesson | None) -> Inputs:
    if lesson is None:
        return Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None)
    return Inputs(
        dataset=dataset.record.id,
        cache=lesson.table.record.identity.cache,
        soft_labels=lesson.soft.id,
        selection=lesson.table.id,
        accepted_mismatches=tuple(lesson.table.record.accepted),
    )


def _teacher_classes(config: Config, dataset: Dataset, lesson: _Lesson | None) -> TeacherClasses:
    """What the teacher says of the clean images, as far as it is known here."""
    train = made_cache(config, dataset, split="train")
    classes: NDArray[np.int64] | None
    if lesson is None:
        classes, is_ours = _top_classes(train, dataset.train), True
    else:
        classes = lesson.table.frame["teacher_class"].to_numpy(dtype=np.int64)
        # The lesson may be another team's, of another teacher than the one that is configured here.
        is_ours = train is not None and train.id == lesson.table.record.identity.cache
    made_test = made_cache(config, dataset, split="eval") if is_ours else None
    test = _top_classes(made_test, dataset.eval)
    return TeacherClasses(
        held_out=None if classes is None else torch.from_numpy(classes[dataset.held_out]),
        test=None if test is None else torch.from_numpy(test),
    )


def _top_classes(cache: TeacherCache | None, beton: Beton) -> NDArray[np.int64] | None:
    """The teacher's class of every sample, -1 where it never saw it."""
    if cache is None:
        return None
    joined = join_samples(cache, beton.samples, place=str(beton.path), accept=ANY_LABELS)
    return np.where(joined.known, cache.top_classes(0)[joined.rows], -1)
