"""FFCV without its side effects: here, without recompiling for every loader."""

import numpy as np
from numba.core import event

from pipeline.data.loaders import BatchLoader


def compiled_by(loader: BatchLoader) -> list[str]:
    """Names of the functions that numba compiled while ``loader`` showed an epoch."""
    with event.install_recorder("numba:compile") as recorder:
        batches = list(loader.epoch(0))
    assert sum(len(batch.labels) for batch in batches) == loader.num_samples
    starts = (one for _, one in recorder.buffer if one.is_start)
    return [one.data["dispatcher"].py_func.__qualname__ for one in starts]


def test_a_second_loader_compiles_nothing(prepared):
    compiled_by(BatchLoader(prepared.train, batch_size=16))
    assert compiled_by(BatchLoader(prepared.train, batch_size=16)) == []
    assert compiled_by(BatchLoader(prepared.eval, batch_size=9)) == []


def test_labels_and_indices_are_those_of_the_samples(prepared):
    beton = prepared.train
    loader = BatchLoader(beton, batch_size=10, order="random", seed=3)
    batches = [(batch.indices.clone(), batch.labels.clone()) for batch in loader.epoch(1)]
    indices, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert sorted(indices) == list(range(beton.num_samples))
    assert (labels == beton.samples.labels[indices]).all()
    assert indices.dtype == labels.dtype == np.int64
