"""cache-teacher: betons + teacher checkpoint -> teacher cache.

The teacher runs once over every view of the training beton and once over the test beton, each into
a cache of its own; nothing later needs its weights.
"""

import logging

import numpy as np
import torch

from pipeline.artefacts.cache_index import cache_path, remember
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.run import Run
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch
from pipeline.models.checkpoints import load_into, load_weights, weights_digest
from pipeline.models.zoo import build
from pipeline.provenance import short
from pipeline.runtime import Runtime, resolve_runtime
from pipeline.teacher_pass import Teacher, cache_identity, cache_views
from stages.configs import Config
from stages.requests import cache_request, teacher_run_path, view_spec

logger = logging.getLogger(__name__)


def execute(config: Config) -> TeacherCache:
    """Make the caches of both betons, or say that they exist; return the training one."""
    dataset = Dataset.open(config.data_folder)
    runtime = resolve_runtime(config.cache_teacher.precision)
    teacher = _load_teacher(config, dataset, runtime)
    train = _cache(config, dataset, teacher, runtime, dataset.train, view_spec(config.views))
    test = _cache(config, dataset, teacher, runtime, dataset.eval, ViewSpec())
    remember(
        config.caches_folder, request=cache_request(config, dataset), train=train.id, test=test.id
    )
    logger.info("teacher accuracy on the test images: %.2f %%", 100 * _accuracy(test))
    return train


def _load_teacher(config: Config, dataset: Dataset, runtime: Runtime) -> Teacher:
    """The frozen teacher: a checkpoint, or our own run."""
    settings = config.cache_teacher
    if settings.checkpoint is None:
        run = Run.open(teacher_run_path(config, dataset))
        source, arch = run.weights, run.result.arch
        mean, std = run.result.mean, run.result.std
        in_sample = run.result.held_out != dataset.held_out_digest
        description = f"{arch} of {run.path.name}"
    else:
        source, arch = settings.checkpoint, settings.arch
        mean, std = settings.mean or dataset.record.mean, settings.std or dataset.record.std
        in_sample = settings.trained_on_held_out
        description = f"{arch} of {settings.checkpoint.name}"
    weights = load_weights(source)
    model = build(arch, num_classes=dataset.num_classes)
    load_into(model, weights, source=source)
    model = model.eval().requires_grad_(False).to(runtime.device)
    return Teacher(
        model=model.to(memory_format=torch.channels_last),
        digest=weights_digest(weights),
        mean=mean,
        std=std,
        target_in_sample=in_sample,
        description=description,
    )


def _cache(
    config: Config,
    dataset: Dataset,
    teacher: Teacher,
    runtime: Runtime,
    beton: Beton,
    views: ViewSpec,
) -> TeacherCache:
    """The cache of one beton, made now or found."""
    features = config.cache_teacher.features
    identity = cache_identity(teacher, beton=beton, views=views, runtime=runtime, features=features)
    path = cache_path(config.caches_folder, identity.id)
    if path.exists():
        cache = TeacherCache.open(path)
        _require_same_rows(cache, beton)
        logger.info("%s exists: %s, nothing to do", path, _describe(cache))
        return cache
    loader = BatchLoader(
        beton,
        batch_size=config.cache_teacher.batch_size,
        view_spec=views,
        workers=runtime.loader_workers(config.cache_teacher.workers),
    )
    cache_views(
        path,
        identity=identity,
        teacher=teacher,
        loader=loader,
        beton=beton,
        num_views=views.num_views + 1,
        runtime=runtime,
        held_out=dataset.held_out if beton is dataset.train else np.zeros(0, dtype=np.int64),
    )
    cache = TeacherCache.open(path)
    logger.info("%s: %s", path, _describe(cache))
    return cache


def _require_same_rows(cache: TeacherCache, beton: Beton) -> None:
    """The same images in another order are the same data set, but other rows."""
    if not np.array_equal(cache.keys, beton.samples.keys):
        raise ArtefactMismatch(
            f"{cache.path} has the samples of {beton.path} in another order. Prepare the images "
            "again, so that they lie in canonical order."
        )


def _accuracy(cache: TeacherCache) -> float:
    return 1.0 - cache.summary.num_wrong / cache.shape.num_samples


def _describe(cache: TeacherCache) -> str:
    summary, shape = cache.summary, cache.shape
    held_out = "".join(f", held out {100 * a:.2f} %" for a in summary.accuracy_held_out[:1])
    per_view = "/".join(f"{100 * a:.1f}" for a in summary.accuracy_training)
    agree = "/".join(f"{100 * a:.1f}" for a in summary.agreement[1:])
    return (
        f"{summary.teacher}, {shape.num_views} views of {shape.num_samples:,} images, "
        f"accuracy per view {per_view} %{held_out}, {summary.num_wrong:,} wrong rows"
        + (f", agreement with the clean view {agree} %" if agree else "")
        + f", {summary.seconds:.1f} s, id {short(cache.id)}"
    )
