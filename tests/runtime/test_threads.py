"""Two threads find what one finds, in every stage that computes; the suite itself runs with one."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.artefacts.dataset import Dataset
from stages import cache_teacher, select, train_student
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.workspaces import linked_copy, tables_in

CHANGES = (
    "select.influence.folds=2",
    "train_student.precision=fp64",
    "cache_teacher.precision=fp32",
)
CLOSE = 1e-9
"""Tolerance, relative to the largest entry of a column."""


@pytest.fixture(autouse=True)
def _threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(digits: Config, monkeypatch, workspace: Path, *stages: ModuleType, threads: int) -> Config:
    """Run these stages with so many threads in a copy of the workspace without their outputs."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(threads)))
    theirs = ["caches"] if cache_teacher in stages else ["selections", "student-*"]
    linked_copy(digits.workspace, workspace, without=tuple(theirs))
    config = with_overrides(digits, [f"workspace={workspace}", *CHANGES])
    for stage in stages:
        torch.set_num_threads(3)
        stage.execute(config)
        assert torch.get_num_threads() == threads
    return config


def logits_of(config: Config) -> np.ndarray:
    cache = Caches(config=config, dataset=Dataset.open(config.data_folder)).training
    return np.asarray(cache.logits(1)[:], dtype=np.float64)


def losses_of(config: Config) -> list[float]:
    (metrics,) = config.runs_folder.glob("student-*/metrics.jsonl")
    return [json.loads(line)["training_loss"] for line in metrics.read_text().splitlines()]


def test_two_threads_cache_what_one_caches(digits, tmp_path, monkeypatch):
    one, two = (
        made(digits, monkeypatch, tmp_path / str(threads), cache_teacher, threads=threads)
        for threads in (1, 2)
    )
    np.testing.assert_allclose(logits_of(two), logits_of(one), rtol=2e-3, atol=2e-3)


def test_two_threads_select_and_train_as_one_does(digits, tmp_path, monkeypatch):
    one, two = (
        made(digits, monkeypatch, tmp_path / str(threads), select, train_student, threads=threads)
        for threads in (1, 2)
    )
    expected, found = (
        pd.read_parquet(tables_in(config.selections_folder)[0]) for config in (one, two)
    )
    assert found["selected"].tolist() == expected["selected"].tolist()
    for name in expected.select_dtypes("number"):
        largest = expected[name].abs().max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=CLOSE * largest)
    np.testing.assert_allclose(losses_of(two), losses_of(one), rtol=0, atol=1e-12)
