"""Soft labels joined on a device are those that the loader gathers, and batches arrive whole."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from pipeline.data import loaders
from pipeline.data.device_batches import has_room, table_bytes
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ALL, ViewSpec
from tests.support.supervisions import NUM_CLASSES, supervision_of

SEEDED = ViewSpec(padding=2, flip=True, count=3, seed=5)
EVERY = ViewSpec(padding=1, flip=True, count=ALL)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def beton(prepared):
    return prepared.train


def with_features(supervision, beton):
    rng = np.random.default_rng(2)
    shape = (beton.num_samples, 7)
    tables = [rng.random(shape).astype(np.float16) for _ in supervision.soft_labels]
    return replace(supervision, features=tables)


def supervisions(beton):
    yield SEEDED, supervision_of(beton, num_tables=3)
    yield SEEDED, supervision_of(beton, num_tables=3, top_k=2)
    yield SEEDED, supervision_of(beton, num_tables=1, by_view=False)
    yield EVERY, with_features(supervision_of(beton, num_tables=EVERY.num_views), beton)


def loader_of(beton, case, *, device=CPU):
    spec, supervision = list(supervisions(beton))[case]
    return BatchLoader(
        beton,
        batch_size=16,
        view_spec=spec,
        order="random",
        supervision=supervision,
        workers=1,
        device=device,
    )


def epochs_of(loader, number):
    """Every field of every batch, in memory of its own."""
    for epoch in range(number):
        for batch in loader.epoch(epoch):
            values = {field.name: getattr(batch, field.name) for field in fields(batch)}
            yield {name: None if v is None else v.clone().cpu() for name, v in values.items()}


def require_equal(found, expected):
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if value is None:
                assert batch[name] is None
                continue
            assert batch[name].dtype == value.dtype
            numpy, others = batch[name].numpy(), value.numpy()
            np.testing.assert_array_equal(numpy.view(np.uint8), others.view(np.uint8), name)


@pytest.mark.parametrize("case", range(4))
def test_rows_joined_on_the_device_are_those_that_the_loader_gathers(beton, case, monkeypatch):
    gathered = list(epochs_of(loader_of(beton, case), 3))
    monkeypatch.setattr(loaders, "has_room", lambda *_: True)
    require_equal(list(epochs_of(loader_of(beton, case), 3)), gathered)


def test_on_a_cpu_tables_stay_where_they_are(beton):
    supervision = supervision_of(beton, num_tables=1, by_view=False)
    assert not has_room(supervision, CPU)
    assert table_bytes(supervision) == beton.num_samples * (2 * NUM_CLASSES + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("case", range(4))
def test_batches_arrive_on_a_gpu_as_they_left(beton, case, resident, monkeypatch):
    expected = list(epochs_of(loader_of(beton, case), 3))
    monkeypatch.setattr(loaders, "has_room", lambda *_: resident)
    loader = loader_of(beton, case, device=torch.device("cuda"))
    (first, *_) = loader.epoch(0)
    assert first.images.device.type == "cuda"
    assert first.soft_labels.device.type == "cuda"
    require_equal(list(epochs_of(loader, 3)), expected)
