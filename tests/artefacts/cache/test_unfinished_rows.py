"""A stopped `cache-teacher` continues within a shard, and the cache is that of a clean run."""

import logging
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.unfinished_rows import KeptRows, ShardRows, UnfinishedRows
from pipeline.teacher import computed_rows
from stages.identities import teacher_run_path
from tests.support.command_server import Server
from tests.support.commands import heartcut

BATCH, NUM_TRAINING = 5, 450
SETTINGS = (
    "cache_teacher.arch=resnet8a",
    "cache_teacher.shard_rows=10000",
    "cache_teacher.check_teacher=off",
    f"cache_teacher.batch_size={BATCH}",
    "views.padding=1",
    "views.count=2",
)
KEPT = re.compile(r"view (\d), samples (\d+) to \d+: ([\d,]+) images are kept already")


@pytest.fixture(scope="module")
def keeping_server():
    """Forks commands that write every batch to a file at once, instead of every 30 seconds."""
    running = Server("from pipeline.teacher import computed_rows; computed_rows.KEEP_SECONDS = 0.0")
    yield running
    running.close()


def range_of(path: Path) -> tuple[int, int]:
    first, _, stop = path.stem.partition(".")[2].partition("-")
    return int(first), int(stop)


def first_of(path: Path) -> int:
    return range_of(path)[0]


class Job:
    """`cache-teacher` in a workspace of its own: every view is one shard of 90 batches."""

    def __init__(self, digits, tiny_toml: Path, folder: Path) -> None:
        self.workspace = folder / "work"
        shutil.copytree(digits.data_folder, self.workspace / "data")
        run = teacher_run_path(digits, Dataset.open(digits.data_folder))
        self.caches = self.workspace / "caches"
        settings = (
            f"workspace={self.workspace}",
            f"cache_teacher.checkpoint={run / 'model.safetensors'}",
            *SETTINGS,
        )
        self.command = [
            "cache-teacher",
            tiny_toml,
            *(part for one in settings for part in ("--set", one)),
        ]

    def files(self) -> list[Path]:
        return sorted(self.caches.glob("*.unfinished/*.rows"))

    def roots(self) -> set[str]:
        return {TeacherCache.open(seal.parent).root for seal in self.caches.glob("*/sealed.json")}

    def stop(self, server: Server, folder: Path, number: int, *, at: int):
        """Start the command, stop it once there are ``at`` files of unfinished rows."""
        running = server.start(folder, *self.command)
        while len(self.files()) < at and running.is_running:
            time.sleep(0.0005)
        running.signal(number)
        return running.wait()


@pytest.fixture
def job(digits, tiny_toml, tmp_path) -> Job:
    return Job(digits, tiny_toml, tmp_path)


@pytest.fixture(scope="module")
def clean_roots(digits, tiny_toml, tmp_path_factory) -> set[str]:
    job = Job(digits, tiny_toml, tmp_path_factory.mktemp("clean"))
    done = heartcut(*job.command)
    assert (done.code, done.err) == (0, "")
    assert not list(job.caches.glob("*.unfinished"))
    roots = job.roots()
    assert len(roots) == 2
    return roots


@pytest.mark.parametrize("at", [1, 17, 60])
def test_a_kill_loses_at_most_the_batch_at_work(keeping_server, job, clean_roots, tmp_path, at):
    done = job.stop(keeping_server, tmp_path / "killed", signal.SIGKILL, at=at)
    assert done.code == -signal.SIGKILL
    firsts = sorted(first_of(path) for path in job.files())
    assert len(firsts) >= at
    assert firsts == [BATCH * number for number in range(len(firsts))], "no gap"
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    ((view, start, kept),) = KEPT.findall(done.err)
    assert (view, start) == ("0", "0")
    assert int(kept) == BATCH * len(firsts)
    assert job.roots() == clean_roots
    assert not list(job.caches.glob("*.unfinished"))


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_request_to_stop_keeps_every_image_that_was_computed(
    keeping_server, job, clean_roots, tmp_path, number, code, last
):
    kept = 0
    for attempt in range(3):
        done = job.stop(keeping_server, tmp_path / str(attempt), number, at=len(job.files()) + 10)
        assert (done.shell_code, done.out) == (code, "")
        kept_line, end = done.err.splitlines()
        assert end == f"{last}: run the same command to resume"
        found = re.search(
            r"keeps 0 of 3 shards and ([\d,]+) images of unfinished ones: run", kept_line
        )
        assert found is not None, kept_line
        assert kept + 10 * BATCH <= int(found[1].replace(",", "")) < NUM_TRAINING
        kept = int(found[1].replace(",", ""))
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    assert sum(int(number) for *_, number in KEPT.findall(done.err)) == kept
    assert job.roots() == clean_roots
    assert not list(job.caches.glob("*.unfinished"))


FIRST_ONLY = """
from pipeline.teacher import computed_rows

keep, computed_rows.KEEP_SECONDS = computed_rows.ComputedRows.keep, 0.0

def keep_and_wait(rows):
    keep(rows)
    computed_rows.KEEP_SECONDS = 3600.0

computed_rows.ComputedRows.keep = keep_and_wait
"""


def test_a_stop_writes_what_no_file_has_yet(job, clean_roots, tmp_path):
    """The command writes its first batch at once, and the next ones in an hour."""
    server = Server(FIRST_ONLY)
    running = server.start(tmp_path / "stopped", *job.command)
    while not job.files() and running.is_running:
        time.sleep(0.001)
    time.sleep(0.05)
    running.signal(signal.SIGINT)
    assert running.wait().shell_code == 130
    server.close()
    (first, rest) = sorted(map(range_of, job.files()))
    assert first == (0, BATCH)
    assert rest[0] == BATCH < rest[1]
    done = heartcut(*job.command, quiet=False)
    assert [int(number) for *_, number in KEPT.findall(done.err)] == [rest[1]]
    assert job.roots() == clean_roots


def begun(job: Job, server: Server, folder: Path) -> list[Path]:
    job.stop(server, folder, signal.SIGKILL, at=20)
    files = sorted(job.files(), key=first_of)
    assert len(files) >= 20
    return files


@pytest.mark.parametrize("where", ["header", "numbers", "cut", "empty"])
def test_a_damaged_file_is_recomputed_with_a_word(
    keeping_server, job, clean_roots, tmp_path, where
):
    path = begun(job, keeping_server, tmp_path / "killed")[7]
    data = bytearray(path.read_bytes())
    if where in ("header", "numbers"):
        data[20 if where == "header" else -9] ^= 1
    path.write_bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(where)])
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    assert f"{path} is damaged, so its images are recomputed" in done.err
    assert [int(number) for *_, number in KEPT.findall(done.err)] == [7 * BATCH]
    assert job.roots() == clean_roots


def test_rows_of_another_batch_size_are_recomputed_with_a_word(
    keeping_server, job, clean_roots, tmp_path
):
    path = begun(job, keeping_server, tmp_path / "killed")[0]
    done = heartcut(*job.command, "--set", "cache_teacher.batch_size=9", quiet=False)
    assert done.code == 0
    assert f"{path} was written with another batch_size, so its images are recomputed" in done.err
    assert not KEPT.findall(done.err)
    assert job.roots() == clean_roots


def test_a_folder_that_cannot_be_written_costs_a_warning_only(job, clean_roots, monkeypatch):
    monkeypatch.setattr(computed_rows, "KEEP_SECONDS", 0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UnfinishedRows, "keep", full)
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    assert "So a stop loses the images of the shard at work" in done.err
    assert job.roots() == clean_roots


def test_the_rows_of_a_shard_continue_each_other_and_are_forgotten_alone(tmp_path, caplog):
    place = UnfinishedRows(folder=tmp_path / "c.unfinished", made_by={"cache": "a"})
    shard, next_shard = (ShardRows(view=1, start=n, stop=n + 10) for n in (10, 20))
    drawn = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    for first, stop in ((0, 4), (4, 8), (9, 10)):
        place.keep(shard, 10 + first, KeptRows(features=drawn[first:stop], seconds=1.5))
    place.keep(next_shard, 20, KeptRows(features=drawn[:2], seconds=1.0))
    found = place.read(shard)
    assert torch.equal(torch.cat([kept.features for kept in found]), drawn[:8])
    assert [kept.seconds for kept in found] == [1.5, 1.5]
    assert place.read(ShardRows(view=0, start=10, stop=20)) == []
    with caplog.at_level(logging.WARNING):
        assert place.read(ShardRows(view=1, start=10, stop=18)) == []
    assert "another shard" in caplog.text
    place.forget(shard)
    assert place.read(shard) == []
    assert len(place.read(next_shard)) == 1
    place.remove()
    assert not place.folder.exists()
