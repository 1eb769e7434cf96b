"""Offline equals online: what is cached is what the teacher says of the very pixels that a student
sees."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.artefacts import soft_labels as soft_format
from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.run import Run
from pipeline.artefacts.soft_labels import SoftLabelIdentity, SoftLabels
from pipeline.data.loaders import BatchLoader
from pipeline.data.supervision import Batch, Supervision
from pipeline.data.views import ALL, ViewSpec
from pipeline.methods.label_revision import soft_labels
from pipeline.models.zoo import build
from pipeline.provenance import array_sha256
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity, teacher_outputs
from stages import train_student
from stages.config.file import with_overrides
from stages.identities import teacher_run_path
from tests.support.learners import (
    FP32,
    kd_loss,
    learner_of,
    normaliser_of,
    optimizer_of,
    train_epoch,
)

SPECS = {
    "all": ViewSpec(padding=4, flip=True, count=ALL),
    "seeded": ViewSpec(padding=4, flip=True, count=3, seed=5),
}
FLOAT32_SLACK = 1e-4
"""Sums of float32 products in another order, for logits of this size."""
TEMPERATURE = 4.0


@pytest.fixture(scope="module")
def teacher(prepared) -> Teacher:
    """A briefly trained network, so that its logits are neither flat nor saturated."""
    torch.manual_seed(1)
    model = build("resnet8a", num_classes=3).to(memory_format=torch.channels_last)
    loader = BatchLoader(prepared.train, batch_size=16, order="random")
    optimizer = optimizer_of(model, lr=0.02, weight_decay=5e-4)
    learner = learner_of(model, prepared, optimizer=optimizer)
    for epoch in range(3):
        train_epoch(learner, loader.epoch(epoch), num_samples=74, batch_size=16)
    return Teacher(
        model=model.eval().requires_grad_(False),
        digest="a" * 64,
        mean=prepared.record.mean,
        std=prepared.record.std,
        target_in_sample=False,
        description="briefly trained",
    )


@pytest.fixture(scope="module", params=SPECS)
def spec(request) -> ViewSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def cache(spec, prepared, teacher, tmp_path_factory) -> TeacherCache:
    identity = cache_identity(
        teacher,
        beton=prepared.train,
        views=spec,
        runtime=FP32,
        kept=KeptOutputs(features=True),
    )
    planned = TeacherPass(
        teacher=teacher,
        loader=BatchLoader(prepared.train, batch_size=64, view_spec=spec),
        beton=prepared.train,
        views=spec,
        runtime=FP32,
        held_out=prepared.held_out,
    )
    path = tmp_path_factory.mktemp("cache") / "cache"
    layout = CacheLayout(shard_rows=30)
    cache_views(open_objects(path), planned, identity=identity, layout=layout)
    return TeacherCache.open(path)


@pytest.mark.parametrize(
    ("order", "workers", "batch_size"),
    [("sequential", 1, 74), ("random", 1, 16), ("random", 2, 9)],
)
def test_cached_logits_are_those_of_the_images_that_the_loader_replays(
    cache, spec, prepared, teacher, order, workers, batch_size
):
    """Half a unit in the last place of float16 at the value, and a slack for float32 sums."""
    loader = BatchLoader(
        prepared.train, batch_size=batch_size, view_spec=spec, order=order, workers=workers
    )
    normalise = normaliser_of(prepared)
    step = 1 if batch_size == 74 else 23  # all views once, then some of them in other ways
    for view in range(0, spec.num_views + 1, step):
        cached = cache.logits(view)
        for batch in loader.view(view):
            with torch.inference_mode():
                logits, _ = teacher_outputs(teacher.model, normalise, batch, runtime=FP32)
            stored = cached[batch.indices.numpy()]
            bound = 0.5 * np.spacing(np.abs(stored)).astype(np.float32) + FLOAT32_SLACK
            assert (np.abs(logits.numpy() - stored.astype(np.float32)) <= bound).all(), view


def test_views_differ_by_more_than_the_bound_above(cache):
    """Or else a cache of the wrong view would pass."""
    clean, first = cache.logits(0).astype(np.float32), cache.logits(1).astype(np.float32)
    assert np.median(np.abs(clean - first).max(axis=1)) > 100 * FLOAT32_SLACK


def test_an_epoch_replays_what_its_views_say(cache, spec, prepared, teacher):
    """The slot that the loader joins is the view that it shows, also in the second epoch."""
    supervision = Supervision(
        soft_labels=[cache.logits(view) for view in range(1, spec.num_views + 1)],
        selected=np.ones(prepared.train.num_samples, dtype=bool),
        labels=cache.labels,
        by_view=True,
        num_classes=cache.shape.num_classes,
    )
    loader = BatchLoader(
        prepared.train,
        batch_size=20,
        view_spec=spec,
        order="random",
        seed=3,
        supervision=supervision,
    )
    for epoch in (0, 1, spec.num_views):
        for batch in loader.epoch(epoch):
            with torch.inference_mode():
                logits, _ = teacher_outputs(
                    teacher.model, normaliser_of(prepared), batch, runtime=FP32
                )
            stored = batch.soft_labels.numpy()
            bound = 0.5 * np.spacing(np.abs(stored)).astype(np.float32) + FLOAT32_SLACK
            assert (np.abs(logits.numpy() - stored.astype(np.float32)) <= bound).all()


def online(batches: Iterator[Batch], teacher: Teacher, dataset: Dataset) -> Iterator[Batch]:
    """The teacher in the loop: float32 soft labels of the very images of the batch."""
    normalise = normaliser_of(dataset)
    for batch in batches:
        with torch.inference_mode():
            logits, _ = teacher_outputs(teacher.model, normalise, batch, runtime=FP32)
        yield replace(
            batch,
            soft_labels=(logits / TEMPERATURE).softmax(dim=1).clone(),
            selected=torch.ones(len(batch), dtype=torch.bool),
        )


def cached_soft_labels(cache: TeacherCache, spec: ViewSpec, folder) -> SoftLabels:
    identity = SoftLabelIdentity(
        cache=cache.id,
        root=cache.root,
        rows=array_sha256(cache.keys),
        top_k=0,
        view_spec=spec.as_json(),
        revision="none",
        eta=None,
        temperature=TEMPERATURE,
        revise_at=TEMPERATURE,
        views=tuple(range(1, spec.num_views + 1)),
    )
    labels = torch.from_numpy(cache.labels)
    views = (
        [
            soft_labels(
                torch.from_numpy(cache.logits(view)),
                labels,
                revision="none",
                eta=0.8,
                temperature=TEMPERATURE,
            )
            .half()
            .numpy()
        ]
        for view in identity.views
    )
    soft_format.write(
        folder / "a.soft",
        identity=identity,
        views=views,
        size=(cache.shape.num_samples, cache.shape.num_classes),
    )
    return SoftLabels.open(folder / "a.soft")


def test_offline_distillation_equals_online_distillation(cache, spec, prepared, teacher, tmp_path):
    soft = cached_soft_labels(cache, spec, tmp_path)
    supervision = Supervision(
        soft_labels=soft.views(),
        selected=np.ones(prepared.train.num_samples, dtype=bool),
        labels=cache.labels,
        by_view=soft.by_view,
        num_classes=soft.num_classes,
    )
    curves = {}
    for way in ("offline", "online"):
        torch.manual_seed(7)
        student = build("resnet8a", num_classes=3).to(memory_format=torch.channels_last)
        optimizer = optimizer_of(student, lr=0.02, weight_decay=5e-4)
        learner = learner_of(student, prepared, kd_loss(), optimizer=optimizer)
        loader = BatchLoader(
            prepared.train,
            batch_size=16,
            view_spec=spec,
            rows=prepared.training,
            order="random",
            seed=7,
            supervision=supervision if way == "offline" else None,
        )
        curves[way] = [
            train_epoch(
                learner,
                loader.epoch(epoch)
                if way == "offline"
                else online(loader.epoch(epoch), teacher, prepared),
                num_samples=loader.num_samples,
                batch_size=16,
            ).loss
            for epoch in range(2)
        ]
    assert curves["offline"] == pytest.approx(curves["online"], abs=1e-3)
    assert abs(curves["online"][0] - curves["online"][1]) > 1e-2, "or else nothing was learned"


def test_a_student_trains_when_the_teacher_is_gone(digits_copy):
    dataset = Dataset.open(digits_copy.data_folder)
    shutil.rmtree(teacher_run_path(digits_copy, dataset))
    run = train_student.execute(with_overrides(digits_copy, ["train_student.seed=9"]))
    assert isinstance(run, Run)
    assert run.result.num_distilled > 0
    assert run.result.teacher_agreement_test is not None
    assert run.result.cost.teacher_forwards_saved == len(dataset.training)
