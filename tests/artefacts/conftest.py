"""Fixtures of the stored formats: a small cache, and a copy of it that a test may change."""

import shutil
from pathlib import Path

import pytest

from tests.support.small_caches import SmallCache


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Path:
    """Two views of seven samples in two shards each; never changed."""
    path = tmp_path_factory.mktemp("sealed") / "cache"
    SmallCache(path).write()
    return path


@pytest.fixture
def small(sealed: Path, tmp_path: Path) -> SmallCache:
    """A copy that a test may change."""
    return SmallCache(Path(shutil.copytree(sealed, tmp_path / "cache")))
