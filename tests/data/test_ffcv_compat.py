"""FFCV without its side effects: here, without recompiling for every loader."""

import subprocess
import sys

import numpy as np
from numba.core import event

from pipeline.data.loaders import BatchLoader
from tests.support.commands import ROOT


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


KILLED = """
import os, signal
import numba
from numba.np.ufunc import parallel
import pipeline.data.ffcv_compat

numba.set_num_threads(1)
killed = os.fork()
if killed == 0:
    parallel._backend_init_process_lock.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(killed, 0)
other = os.fork()
numba.set_num_threads(1)
if other == 0:
    os._exit(0)
assert os.waitpid(other, 0)[1] == 0
"""


def test_a_process_killed_with_numbas_lock_stops_no_other():
    """Processes of the same server share a semaphore of numba, and tests kill some of them."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0
