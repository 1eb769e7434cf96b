"""train-teacher: betons -> run, with nothing to distil. For teachers of one's own, and the demo."""

import logging

import numpy as np

from pipeline.artefacts.dataset import Dataset, stratified_rows
from pipeline.artefacts.run import Inputs, Run
from pipeline.training import plain_loss
from stages.configs import Config
from stages.requests import fresh_views, teacher_run_path, training_settings
from stages.training_run import TeacherClasses, Training, describe, train

logger = logging.getLogger(__name__)


def execute(config: Config) -> Run:
    """Train the teacher of ``config`` on T, or a share of it, unless the same run exists."""
    dataset = Dataset.open(config.data_folder)
    path = teacher_run_path(config, dataset)
    if path.exists():
        run = Run.open(path)
        logger.info("%s exists: %s, nothing to do", path, describe(run.result))
        return run
    settings = config.train_teacher
    views = fresh_views(config)
    rows = dataset.training
    if settings.fraction < 1.0:
        samples = dataset.train.samples.rows(rows)
        share = stratified_rows(
            samples, fraction=settings.fraction, seed=settings.seed, purpose="teacher"
        )
        rows = np.sort(rows[share])
    training = Training(
        settings=settings,
        identity={**training_settings(settings), "views": views.as_json()},
        inputs=Inputs(dataset=dataset.record.id, cache=None, soft_labels=None, selection=None),
        dataset=dataset,
        rows=rows,
        views=views,
        loss=plain_loss,
        supervision=None,
        num_distilled=0,
        teacher=TeacherClasses(held_out=None, test=None),
    )
    return train(training, path)
