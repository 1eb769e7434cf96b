"""Settings and fixtures that every test shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.command_server import Server
from tests.support.image_folders import folder_config, save_folder
from tests.support.servers import nanio_server, seaweed  # noqa: F401 - fixtures
from tests.support.workspaces import TINY, linked_copy, tiny_config

# The first torch call takes half a second and would trip Hypothesis' deadline of 200 ms.
settings.register_profile("heartcut", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("heartcut")

LONGEST_FIRST = (
    "test_resume.py",
    "test_ranks_training.py",
    "test_select_ranks.py",
    "test_select_interrupted.py",
    "test_survival.py",
    "test_methods.py",
    "test_sweep.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that take minutes first, so that all workers finish at the same time."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory):
    """74 training and 9 test images of 16 x 16 pixels in three classes; never changed."""
    return save_folder(tmp_path_factory.mktemp("images"), train=74)


@pytest.fixture(scope="session")
def prepared(image_root, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The data set of `image_root`; never changed."""
    from stages import prepare  # ffcv loads here, not for the tests of plain maths

    return prepare.execute(folder_config(tmp_path_factory.mktemp("prepared"), image_root))


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration file of `digits`."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def digits(tiny_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Digits with a teacher, its cache and a selection in a workspace; never changed."""
    from stages import cache_teacher, prepare, select, train_teacher

    config = tiny_config(tiny_toml, tmp_path_factory.mktemp("digits") / "work")
    prepare.execute(config)
    train_teacher.execute(config)
    cache_teacher.execute(config)
    select.execute(config)
    return config


@pytest.fixture(scope="session")
def dataset(digits: Config) -> Dataset:
    """The data set of `digits`."""
    return Dataset.open(digits.data_folder)


@pytest.fixture(scope="session")
def cache(digits: Config, dataset: Dataset) -> TeacherCache:
    """The cache of `digits`."""
    from stages.caches import Caches

    return Caches(config=digits, dataset=dataset).training


@pytest.fixture
def digits_copy(digits: Config, tmp_path: Path) -> Config:
    """`digits` in a workspace that a test may change."""
    return with_overrides(digits, [f"workspace={linked_copy(digits.workspace, tmp_path / 'work')}"])


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server that forks a process for every command, so that imports are not repeated."""
    running = Server()
    yield running
    running.close()
