"""A command opens each cache that it needs once."""

import shutil
from collections import Counter

import pytest

from pipeline.artefacts.cache.receipts import SEAL
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.local import LocalObjects
from stages import select, train_student
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.report import write as report
from stages.report.write import ReportSettings


@pytest.fixture
def seals(monkeypatch) -> Counter[str]:
    """Reads of each cache's seal, by the cache's place."""
    reads: Counter[str] = Counter()
    read = LocalObjects.read

    def counted(self: LocalObjects, key: str, *, max_bytes: int) -> bytes:
        if key == SEAL:
            reads[self.url] += 1
        return read(self, key, max_bytes=max_bytes)

    monkeypatch.setattr(LocalObjects, "read", counted)
    return reads


def read_once(seals: Counter[str], *, num_caches: int) -> bool:
    """True if this many caches were opened, each once; the counts start again."""
    found = sorted(seals.values())
    seals.clear()
    return found == [1] * num_caches


def test_select_a_student_and_a_report_read_the_seal_of_a_cache_once(digits_copy, seals):
    wanted = with_overrides(
        digits_copy, ["select.influence.l2=0.01", "select.seed=1", "train_student.method=crd"]
    )
    select.execute(wanted)
    assert read_once(seals, num_caches=2)  # the training cache, and the test images' for the leak
    run = train_student.execute(wanted)
    assert read_once(seals, num_caches=2)
    report.execute([run.path], ReportSettings())
    assert read_once(seals, num_caches=2)


def test_a_cache_of_another_team_is_opened_once(digits_copy, seals):
    dataset = Dataset.open(digits_copy.data_folder)
    place = Caches(config=digits_copy, dataset=dataset).training.path
    shutil.rmtree(digits_copy.caches_folder / "index")  # none was made here, as far as is known
    seals.clear()
    named = [f"select.cache={place}", "select.seed=1", "train_student.method=crd"]
    wanted = with_overrides(digits_copy, named)
    select.execute(wanted)
    assert read_once(seals, num_caches=1)
    train_student.execute(wanted)
    assert read_once(seals, num_caches=1)
