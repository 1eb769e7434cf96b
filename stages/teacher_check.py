"""Check of a teacher before its long pass: is it right more often than a guess, and as set?"""

import json
import logging

import torch

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.errors import ConfigError
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.teacher.batches import fitting_batch
from pipeline.teacher.class_orders import Order
from pipeline.teacher.diagnosis import (
    BATCH,
    Better,
    Diagnosis,
    Images,
    balanced_rows,
    diagnose,
)
from pipeline.teacher.frozen import Teacher
from pipeline.teacher.usual_mistakes import NATURAL, TEXT, usual_mistakes, usual_orders
from stages.config.root import Config
from stages.teacher import classes_of_head
from stages.text import percent
from stages.views import seen_size, view_spec

logger = logging.getLogger(__name__)

NUM_IMAGES = 256
IMAGES_PER_CLASS, MOST_IMAGES = 8, 1024
MOST_SHARE, MOST_BYTES = 0.02, 1 << 27
"""More images for many classes, within a share of the teacher's pass and of the memory."""
LONGEST_MAP = 100
"""Classes that a message lists at most, with their rows of the head."""


def check_teacher(
    config: Config, dataset: Dataset, teacher: Teacher, runtime: Runtime, *, ranks: Ranks = ALONE
) -> None:
    """Compare a teacher with a guess and with itself under the usual mistakes, on a few images.

    Of several ranks the first one compares, and the others wait for it. A teacher of this
    configuration is not compared: `train-teacher` trained it on these images with these settings.

    Raises:
        ConfigError: if another setting is clearly better, unless `cache_teacher.check_teacher` is
            "warn" or "off".
    """
    settings = config.cache_teacher
    if settings.check_teacher == "off" or settings.checkpoint is None:
        return
    if ranks.is_first:
        _check(config, dataset, teacher, runtime)
    ranks.wait()


def _check(config: Config, dataset: Dataset, teacher: Teacher, runtime: Runtime) -> None:
    settings = config.cache_teacher
    found = _diagnosis(config, dataset, teacher, runtime)
    if found.better is not None:
        line = _better(config, dataset, teacher, found, found.better)
        if found.better.is_clear and settings.check_teacher == "stop":
            raise ConfigError(
                f'{line}. To continue as it is, set `cache_teacher.check_teacher = "warn"`.'
            )
        logger.warning("%s", line)
    elif found.is_a_guess and found.is_storable:
        logger.warning("%s", _guess(teacher, found))


def _diagnosis(config: Config, dataset: Dataset, teacher: Teacher, runtime: Runtime) -> Diagnosis:
    record = dataset.record
    return diagnose(
        teacher,
        _images(dataset, config, teacher, runtime),
        runtime=runtime,
        alternatives=usual_mistakes(
            teacher,
            dataset_mean=record.mean,
            dataset_std=record.std,
            side=seen_size(view_spec(config.views), dataset),
            size_setting="views.size" if config.views.kind == "rrc-flip" else "prepare.resize",
        ),
        orders=usual_orders(record.class_names),
    )


def _images(dataset: Dataset, config: Config, teacher: Teacher, runtime: Runtime) -> Images:
    views = view_spec(config.views)
    height, width = seen_size(views, dataset)
    labels = dataset.train.samples.labels
    affordable = min(
        int(MOST_SHARE * len(labels) * (views.num_views + 1)), MOST_BYTES // (3 * height * width)
    )
    wanted = min(IMAGES_PER_CLASS * dataset.num_classes, MOST_IMAGES)
    count = max(NUM_IMAGES, min(wanted, affordable))
    order = balanced_rows(labels, count)
    loader = BatchLoader(
        dataset.train,
        batch_size=64,
        view_spec=views,
        rows=order,
        workers=runtime.loader_workers(config.cache_teacher.workers),
    )
    batches = [(batch.images.clone(), batch.indices.clone()) for batch in loader.view(0)]
    rows = torch.cat([indices for _, indices in batches])
    pixels = torch.cat([images for images, _ in batches])
    batch_size = config.cache_teacher.batch_size or fitting_batch(
        teacher.model, (height, width), runtime
    )
    return Images(
        pixels=pixels,
        labels=torch.from_numpy(labels)[rows],
        batch_size=min(BATCH, batch_size),
    )


def _better(
    config: Config, dataset: Dataset, teacher: Teacher, found: Diagnosis, better: Better
) -> str:
    changes = [better.alternative.what] if better.alternative is not None else []
    fixes = [better.alternative.fix] if better.alternative is not None else []
    if better.order is not None:
        fixes.append(_order(config, dataset, better.order))
        # An order is named relative to the one that is set, which may be the natural one.
        is_text = better.order_name == NATURAL and fixes[-1].endswith('"text"`')
        changes.append(TEXT if is_text else better.order_name)
    return (
        f"the teacher {teacher.description} is right on {percent(found.accuracy, digits=1)} of "
        f"{found.num_images:,} images (a guess: {percent(found.guess, digits=1)}), and on "
        f"{percent(better.accuracy, digits=1)} with {' and '.join(changes)} (expected the settings "
        f"that it was trained with). If it was trained so, {' and '.join(fixes)}"
    )


def _order(config: Config, dataset: Dataset, order: Order) -> str:
    """Setting that gives the head's classes this order."""
    settings, names = config.cache_teacher, dataset.record.class_names
    num_classes, rows = classes_of_head(settings, dataset)
    new = [rows[column] for column in order]
    if not settings.class_map and settings.class_names is None:
        for name in ("natural", "text"):
            trial = settings.model_copy(update={"class_order": name})
            if classes_of_head(trial, dataset)[1] == new:
                return f'set `cache_teacher.class_order = "{name}"`'
    shown = ", ".join(
        f"{json.dumps(name)} = {row}" for name, row in list(zip(names, new, strict=True))
    )
    if len(names) > LONGEST_MAP:
        return (
            "set `cache_teacher.class_names` to a text file with the class of each row of the "
            f"head, one a line ({shown[:200]} ...)"
        )
    count = "" if settings.class_names else f"`cache_teacher.num_classes = {num_classes}` and "
    instead = "remove `cache_teacher.class_order`, and " if settings.class_order else ""
    return f"{instead}set {count}`cache_teacher.class_map = {{{shown}}}`"


def _guess(teacher: Teacher, found: Diagnosis) -> str:
    return (
        f"the teacher {teacher.description} is no better than a guess: right on "
        f"{percent(found.accuracy, digits=1)} of {found.num_images:,} images (a guess: "
        f"{percent(found.guess, digits=1)}). No usual mistake explains it: check "
        "`cache_teacher.checkpoint`, `arch`, the order of the classes (`class_names`) and the "
        "normalisation (`mean`, `std`)."
    )
