"""train-teacher: betons -> run, trained on the true labels. For teachers of your own."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import Dataset, stratified_rows
from pipeline.artefacts.run import Inputs, Run
from pipeline.data.label_noise import noisy_labels
from pipeline.models.probing import require_image_size
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.training.student_loss import PlainLoss
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.identities import teacher_run_path, training_settings
from stages.training.run import describe, require_resumable, train
from stages.training.same_code import require_same_code
from stages.training.trainer import TeacherClasses, Training
from stages.views import fresh_views, seen_size

logger = logging.getLogger(__name__)


@with_complete_commands
def execute(config: Config, *, resume: Path | None = None, ranks: Ranks = ALONE) -> Run:
    """Train the teacher of ``config`` on T, or on a fraction of it, unless the same run exists.

    Args:
        config: the configuration.
        resume: the folder of an interrupted training, which must be this one.
        ranks: the processes that train it together; their number is not a part of its id.
    """
    dataset = Dataset.open(config.data_folder)
    path = teacher_run_path(config, dataset)
    if resume is not None:
        training = _training(config, dataset)
        settings, inputs = training.identity, training.inputs
        require_resumable(resume, path, settings=settings, inputs=inputs)
    if ranks.any(path.exists()):
        run = Run.open(path)
        if ranks.is_first:
            require_same_code(run, config.train_teacher, dataset, views=fresh_views(config))
        logger.info("%s exists, nothing to do: %s", path, describe(run.result))
        return run
    runtime = resolve_runtime(config.train_teacher.precision)
    return train(_training(config, dataset), path, runtime, ranks=ranks)


def _training(config: Config, dataset: Dataset) -> Training:
    settings = config.train_teacher
    views = fresh_views(config)
    runtime = resolve_runtime(settings.precision)
    torch.manual_seed(settings.seed)
    model = build(settings.arch, num_classes=dataset.num_classes, head=settings.head)
    require_image_size(model, seen_size(views, dataset))
    return Training(
        settings=settings,
        identity={**training_settings(settings), "views": views.as_json()},
        inputs=Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None),
        dataset=dataset,
        rows=_rows(config, dataset),
        views=views,
        model=runtime.place(model),
        loss=PlainLoss(
            label_smoothing=settings.label_smoothing, labels=_wrong_labels(config, dataset)
        ),
        supervision=None,
        num_distilled=0,
        teacher=TeacherClasses(held_out=None, test=None),
    )


def _wrong_labels(config: Config, dataset: Dataset) -> Tensor | None:
    """Labels with noise instead of the true ones; None without noise."""
    settings = config.train_teacher
    if settings.label_noise == 0:
        return None
    labels = noisy_labels(
        dataset.train.samples,
        share=settings.label_noise,
        num_classes=dataset.num_classes,
        seed=settings.seed,
    )
    return torch.from_numpy(labels)


def _rows(config: Config, dataset: Dataset) -> NDArray[np.int64]:
    """Sample indices that the teacher is trained on."""
    settings, rows = config.train_teacher, dataset.training
    if settings.fraction == 1.0:
        return rows
    share = stratified_rows(
        dataset.train.samples.rows(rows),
        fraction=settings.fraction,
        seed=settings.seed,
        purpose="teacher",
    )
    return np.sort(rows[share])
