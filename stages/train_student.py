"""train-student: betons + selection + soft labels -> run.

The teacher and its weights are needed only for comparisons with a teacher in the loop (`online`).
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.join import ANY_LABELS, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.run import Inputs, Run, run_id, run_path
from pipeline.data.supervision import Supervision
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch
from pipeline.models.networks.classifier import Classifier
from pipeline.models.probing import require_image_size
from pipeline.models.reused_head import ReusedHead
from pipeline.models.zoo import build
from pipeline.provenance import Json, array_sha256
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.teacher.online import OnlineTeacher
from pipeline.training.feature_terms import feature_term
from pipeline.training.student_loss import (
    DistillationLoss,
    DistillationSettings,
    PlainLoss,
    StudentLoss,
    Weights,
)
from stages.caches import Caches
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.config.training import TrainStudentConfig
from stages.identities import student_settings
from stages.teacher import load_teacher
from stages.teacher_check import check_teacher
from stages.training.distillation_inputs import (
    DistillationInputs,
    TeacherFeatures,
    open_distillation_inputs,
    open_features,
    require_teachable,
)
from stages.training.run import describe, require_resumable, train
from stages.training.same_code import require_same_code
from stages.training.trainer import TeacherClasses, Training
from stages.views import fresh_views, seen_size, view_spec

logger = logging.getLogger(__name__)

_NEVER_DISTILLED = -1
"""Stands for a label; such samples do not serve as negatives either."""


@with_complete_commands
def execute(
    config: Config,
    *,
    resume: Path | None = None,
    ranks: Ranks = ALONE,
    log_result: bool = True,
) -> Run:
    """Train the student of ``config``, or resume it, unless the same run exists.

    Args:
        config: the configuration.
        resume: the folder of an interrupted training, which must be this one; None: resume this
            training if it was interrupted.
        ranks: the processes that train it together; their number is not a part of its id.
        log_result: log the line with the test accuracy; a sweep hides it until a point is chosen.
    """
    dataset = Dataset.open(config.data_folder)
    caches = Caches(config=config, dataset=dataset)
    plan = ranks.first_before_others(lambda: _Plan.of(caches))
    settings = config.train_student
    path = run_path(
        config.runs_folder,
        name=settings.name,
        seed=settings.seed,
        id=run_id(plan.identity, plan.inputs),
    )
    if resume is not None:
        require_resumable(resume, path, settings=plan.identity, inputs=plan.inputs)
    if ranks.any(path.exists()):
        run = Run.open(path)
        if ranks.is_first:
            require_same_code(run, settings, dataset, views=plan.views)
        if log_result:
            logger.info("%s exists, nothing to do: %s", path, describe(run.result))
        return run
    if plan.online is not None:
        check_teacher(config, dataset, plan.online.teacher, plan.online.runtime, ranks=ranks)
    training = ranks.first_before_others(lambda: _training(caches, plan))
    return train(training, path, plan.runtime, ranks=ranks, log_result=log_result)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Inputs of a student, before its network is built."""

    distillation: DistillationInputs | None
    online: OnlineTeacher | None
    views: Views
    identity: dict[str, Json]
    inputs: Inputs
    runtime: Runtime

    @classmethod
    def of(cls, caches: Caches) -> "_Plan":
        config, dataset = caches.config, caches.dataset
        settings = config.train_student
        runtime = resolve_runtime(settings.precision)
        distillation = open_distillation_inputs(caches) if settings.distil else None
        online = _online(config, dataset, distillation) if settings.online else None
        views = _views(config, distillation)
        identity: dict[str, Json] = {**student_settings(settings), "views": views.as_json()}
        if distillation is not None:
            require_teachable(config, distillation, dataset)
            # A table may have been edited by hand, so its id does not determine its contents.
            identity["selected"] = array_sha256(distillation.table.distilled)
        if online is not None:
            identity["teacher"] = online.teacher.digest
        return cls(
            distillation=distillation,
            online=online,
            views=views,
            identity=identity,
            inputs=_inputs(dataset, distillation),
            runtime=runtime,
        )


def _training(caches: Caches, plan: _Plan) -> Training:
    """The network, its loss, and what it is trained on."""
    dataset, settings, distillation = caches.dataset, caches.config.train_student, plan.distillation
    torch.manual_seed(settings.seed)
    model = build(settings.arch, num_classes=dataset.num_classes, head=settings.head)
    require_image_size(model, seen_size(plan.views, dataset))
    features: TeacherFeatures | None = None
    loss: StudentLoss = PlainLoss(label_smoothing=settings.label_smoothing)
    if distillation is not None:
        if settings.needs_features:
            features = open_features(caches, distillation)
        labels = np.full(len(distillation.table.labels), _NEVER_DISTILLED)
        rows = dataset.training[distillation.table.distilled[dataset.training]]
        labels[rows] = distillation.table.labels[rows]
        model, loss = _distilled(settings, model, distillation, features, labels=labels)
    model = plan.runtime.place(model)
    return Training(
        settings=settings,
        identity=plan.identity,
        inputs=plan.inputs,
        dataset=dataset,
        rows=dataset.training,
        views=plan.views,
        model=model,
        loss=loss.to(plan.runtime.device, plan.runtime.dtype),
        supervision=None
        if distillation is None
        else _joined(distillation, features, online=plan.online),
        num_distilled=0
        if distillation is None
        else int(distillation.table.distilled[dataset.training].sum()),
        teacher=_teacher_classes(caches, distillation),
        method=None if distillation is None else settings.method,
        online=plan.online,
    )


def _joined(
    distillation: DistillationInputs,
    features: TeacherFeatures | None,
    *,
    online: OnlineTeacher | None,
) -> Supervision:
    """Soft labels and features that are joined to the images."""
    supervision = distillation.supervision(features)
    if online is None:
        return supervision
    # The teacher in the loop recomputes them, for views that the cache may lack.
    return replace(
        supervision,
        soft_labels=supervision.soft_labels[:1],
        features=supervision.features[:1],
        by_view=False,
    )


def _distilled(
    settings: TrainStudentConfig,
    model: Classifier,
    distillation: DistillationInputs,
    features: TeacherFeatures | None,
    *,
    labels: NDArray[np.int64],
) -> tuple[Classifier, StudentLoss]:
    """The network, adapted to the method, and the method's loss."""
    own = settings.method_settings
    method_settings = {} if own is None else own.model_dump()
    term = None
    if features is not None:
        if settings.method == "simkd":
            model = ReusedHead(model, *(torch.from_numpy(part) for part in features.cache.head))
        term = feature_term(
            settings.method,
            method_settings,
            dims=(model.head.in_features, features.dim),
            labels=labels,
            seed=settings.seed,
        )
    ce, kd, feature = settings.weights
    made = distillation.soft.record.identity
    loss_settings = DistillationSettings(
        method=settings.method,
        own=method_settings,
        weights=Weights(ce=ce, kd=kd, feature=feature),
        temperature=made.temperature,
        standardise=made.standardise,
        label_smoothing=settings.label_smoothing,
    )
    return model, DistillationLoss(loss_settings, feature_term=term)


def _online(
    config: Config, dataset: Dataset, distillation: DistillationInputs | None
) -> OnlineTeacher:
    """The teacher that recomputes the labels of the selection's cache during training."""
    assert distillation is not None  # checked by the configuration
    runtime = resolve_runtime(config.cache_teacher.precision)
    labels = distillation.soft.record.identity
    if labels.repair is not None:
        raise ArtefactMismatch(
            f"{distillation.soft.path} has labels of a repaired teacher, which exists in the cache "
            'only (expected the teacher\'s own labels for --online). Set `select.repair = "none"`.'
        )
    return OnlineTeacher(
        teacher=load_teacher(config, dataset, runtime),
        runtime=runtime,
        revision=labels.revision,
        eta=config.select.eta if labels.eta is None else labels.eta,
        revise_at=labels.revise_at,
        standardise=labels.standardise,
    )


def _views(config: Config, distillation: DistillationInputs | None) -> Views:
    """Augmentation of the student's images.

    Raises:
        ArtefactMismatch: if fresh views are asked for and the soft labels belong to cached ones.
    """
    wanted = config.train_student.augmentation
    if config.train_student.online:
        return view_spec(config.views) if wanted == "cached" else fresh_views(config)
    cached_fit = distillation is not None and distillation.soft.by_view
    if wanted == "fresh" and cached_fit:
        raise ArtefactMismatch(
            "train_student.augmentation is 'fresh' and the soft labels belong to cached views "
            "(expected labels of the clean view). Remove this setting, or set "
            '`select.soft_views = "clean"`.'
        )
    if distillation is not None and distillation.soft.by_view:
        return distillation.view_spec
    if wanted == "cached":
        return view_spec(config.views)
    return fresh_views(config)


def _inputs(dataset: Dataset, distillation: DistillationInputs | None) -> Inputs:
    if distillation is None:
        return Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None)
    return Inputs(
        dataset=dataset.record.id,
        cache=distillation.table.record.identity.cache,
        soft_labels=distillation.soft.id,
        selection=distillation.table.id,
        accepted_mismatches=tuple(distillation.table.record.accepted),
    )


def _teacher_classes(caches: Caches, distillation: DistillationInputs | None) -> TeacherClasses:
    """The teacher's classes of the clean images, if they are known here."""
    dataset, train = caches.dataset, caches.made
    classes: NDArray[np.int64] | None
    if distillation is None:
        classes, is_ours = _top_classes(train, dataset.train), True
    else:
        classes = distillation.table.frame["teacher_class"].to_numpy(dtype=np.int64)
        # The selection may come from another team, with another teacher than the configured one.
        is_ours = train is not None and train.id == distillation.table.record.identity.cache
    test = _top_classes(caches.test if is_ours else None, dataset.eval)
    return TeacherClasses(
        held_out=None if classes is None else torch.from_numpy(classes[dataset.held_out]),
        test=None if test is None else torch.from_numpy(test),
    )


def _top_classes(cache: TeacherCache | None, beton: Beton) -> NDArray[np.int64] | None:
    """The teacher's class of every sample; -1 for samples that are not in the cache."""
    if cache is None:
        return None
    joined = join_samples(cache, beton.samples, place=str(beton.path), accept=ANY_LABELS)
    return np.where(joined.known, cache.top_classes(0)[joined.rows], -1)
