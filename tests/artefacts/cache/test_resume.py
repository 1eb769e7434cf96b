"""The teacher cache survives any death: nothing is lost, redone or cleaned up, and bytes agree."""

import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artefacts.cache.arrays import FEATURES, LOGITS, array_specs, object_key
from pipeline.artefacts.cache.receipts import (
    SEAL,
    Note,
    Receipt,
    create_receipt,
    facts_of,
    read_manifest,
    read_receipt,
    receipt_key,
)
from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.writer import CacheWriter, Unit, writing_behind
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.objects.protocol import missing
from pipeline.artefacts.zarr_store import encode
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity, teacher_outputs
from stages.cache import garbage
from stages.identities import teacher_run_path
from tests.support.cases import mentions
from tests.support.commands import heartcut
from tests.support.servers import BUCKET, s3_environment
from tests.support.small_caches import SmallCache, summary_of
from tests.support.workspaces import snapshot

NUM_VIEWS, NUM_SAMPLES, SHARD_ROWS = 2, 5, 2
NUM_WORKERS = 3
NUM_KILLS = {1: 26, NUM_WORKERS: 24}
"""Fifty in all, by the number of workers at once: a command needs seconds until its first shard."""
INTERRUPTED = "interrupted: run the same command to resume"


SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """Makes folders in memory: waiting for the disk would be most of these tests' time."""
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=base, prefix="heartcut-") as root:
        yield lambda: Path(tempfile.mkdtemp(dir=root))


class Died(BaseException):
    """Power is gone: no `except Exception` sees it."""


# A small job without a teacher.


def job(store, **changes) -> SmallCache:
    """A cache of two views of five samples in three shards, to be written to ``store``."""
    sizes = {"num_views": NUM_VIEWS, "num_samples": NUM_SAMPLES, "shard_rows": SHARD_ROWS}
    return SmallCache(Path(), store=store, **(sizes | changes))


def begin(store) -> CacheWriter:
    return job(store).begin()


def arrays_of(writer: CacheWriter, unit: Unit):
    """Arrays that any worker computes for a unit."""
    return job(None).unit(writer, unit)


def work(store, *, computed: list[Unit] | None = None, **changes) -> str:
    """Compute what is missing and seal; return the root hash."""
    small = job(store, **changes)
    writer = small.begin()
    for unit in writer.missing():
        if computed is not None:
            computed.append(unit)
        writer.write(unit, small.unit(writer, unit), Note())
    return writer.seal(summary_of(small.shape.num_views)).root


class Dying:
    """An object store on which a process dies at its ``at``-th operation, and keeps the log."""

    def __init__(self, store, *, at: int = 0, performed: bool = False) -> None:
        self.store, self.at, self.performed = store, at, performed
        self.count, self.dead = 0, False
        self.created: list[str] = []

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def can_list(self) -> bool:
        return self.store.can_list

    def _operation(self, operation, *arguments, **options):
        self.count += 1
        if self.dead or self.count == self.at:
            if self.performed and not self.dead:
                operation(*arguments, **options)
            self.dead = True
            raise Died
        return operation(*arguments, **options)

    def read(self, key, *, max_bytes):
        return self._operation(self.store.read, key, max_bytes=max_bytes)

    def size(self, key):
        return self._operation(self.store.size, key)

    def sizes(self, prefix=""):
        return self._operation(self.store.sizes, prefix)

    def create(self, key, data):
        self.created.append(key)
        return self._operation(self.store.create, key, data)


class InMemory:
    """Objects in a dictionary, to try every moment of death in a second."""

    can_list = True
    url = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, key, *, max_bytes):
        if key not in self.objects:
            raise missing(key)
        assert len(self.objects[key]) <= max_bytes
        return self.objects[key]

    def size(self, key):
        return len(self.objects[key]) if key in self.objects else None

    def sizes(self, prefix=""):
        start = f"{prefix}/" if prefix else ""
        return {key: len(data) for key, data in self.objects.items() if key.startswith(start)}

    def create(self, key, data):
        if key not in self.objects:
            self.objects[key] = data
            return True
        if self.objects[key] != data:
            raise ArtefactMismatch(key)
        return False


def units_with_receipts(store) -> set[Unit]:
    kept = store.sizes("receipts").keys()
    units = (Unit(view, shard) for view in range(NUM_VIEWS) for shard in range(3))
    return {
        unit
        for unit in units
        if all(receipt_key(name, unit.view, unit.shard) in kept for name in (LOGITS, FEATURES))
    }


def require_vouched(store) -> None:
    """Whatever has a receipt is there to the byte."""
    for key in store.sizes("receipts"):
        name, unit = key.removeprefix("receipts/").removesuffix(".json").split("/")
        view, shard = map(int, unit.split("."))
        facts = read_receipt(store, key).facts
        spec = array_specs(read_manifest(store))[name]
        data = store.read(object_key(spec, view, shard), max_bytes=1 << 20)
        assert (len(data), facts.sha256) == (facts.bytes, sha256(data).hexdigest())


@pytest.mark.parametrize("performed", [False, True], ids=["before", "after"])
def test_a_death_at_any_operation_costs_nothing_that_had_a_receipt(performed):
    counting = Dying(InMemory())
    root = work(counting)
    assert counting.count > 60
    assert len(counting.created) == len(set(counting.created))
    for at in range(1, counting.count + 1):
        store = InMemory()
        with pytest.raises(Died):
            work(Dying(store, at=at, performed=performed))
        before, kept = dict(store.objects), units_with_receipts(store)
        require_vouched(store)
        computed: list[Unit] = []
        again = Dying(store)
        assert work(again, computed=computed) == root, at
        assert kept.isdisjoint(computed), at
        assert kept | set(computed) == {Unit(v, s) for v in range(NUM_VIEWS) for s in range(3)}
        assert before.items() <= store.objects.items()
        written_again = {key for key in again.created if key in before and "receipts/" in key}
        half = {receipt_key(LOGITS, unit.view, unit.shard) for unit in computed}
        assert written_again <= half, at  # of units in which another receipt was missing
        cache = TeacherCache.open(store)
        assert cache.root == root
        for unit in computed:
            rows = slice(*cache.manifest.rows_of(unit.shard))
            expected = arrays_of(begin(store), unit)[LOGITS]
            assert np.array_equal(cache.logits(unit.view)[rows], expected)


def test_two_deaths_in_a_row_cost_no_more_than_one():
    root, draws = work(InMemory()), np.random.default_rng(0)
    for _ in range(40):
        store, deaths = InMemory(), 0
        while True:
            try:
                found = work(Dying(store, at=int(draws.integers(1, 90)), performed=True))
            except Died:
                deaths += 1
                if deaths == 8:
                    found = work(store)
                    break
            else:
                break
        assert found == root
        assert TeacherCache.open(store).root == root


CALLS = ("open", "mkdir", "write", "fsync", "link", "unlink")


@contextmanager
def dying_at(monkeypatch, *, at: int, torn: bool = False) -> Iterator[list[str]]:
    """The ``at``-th system call and all later ones raise; a torn write keeps half of its bytes.

    Later ones too: a process that is killed tidies nothing up.
    """
    calls: list[str] = []

    def patched(name, real):
        def call(*arguments, **options):
            calls.append(name)
            if at and len(calls) >= at:
                if torn and len(calls) == at and name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise Died
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, patched(name, getattr(os, name)))
        yield calls


def test_a_death_at_any_system_call_leaves_a_folder_that_is_gone_on_with(in_memory, monkeypatch):
    base = in_memory()

    def run(folder: Path) -> str:
        return work(LocalObjects(folder), num_views=1, num_samples=3)

    with dying_at(monkeypatch, at=0) as calls:
        root = run(base / "clean")
    assert {"write", "fsync", "link", "unlink", "mkdir"} <= set(calls)
    writes = [number for number, name in enumerate(calls, 1) if name == "write"]
    moments = [(at, False) for at in range(1, len(calls) + 1)] + [(at, True) for at in writes]
    left_partials = 0
    for at, torn in moments:
        folder = base / "cache"
        with dying_at(monkeypatch, at=at, torn=torn), pytest.raises(Died):
            run(folder)
        if folder.exists():
            store = LocalObjects(folder)
            require_vouched(store)
            if store.size(SEAL) is not None:
                assert TeacherCache.open(folder).root == root
            left_partials += bool(list(folder.rglob("*.partial")))
        kept = inodes_of_kept(folder)
        assert run(folder) == root, (at, torn)
        assert kept.items() <= inodes_of_kept(folder).items()
        assert TeacherCache.open(folder).root == root
        shutil.rmtree(folder)
    assert left_partials > len(writes)  # nothing was tidied up


def inodes_of_kept(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every receipt below ``folder``, and of the object it vouches for."""
    found = {}
    for receipt in folder.rglob("receipts/*/*.json"):
        cache, name = receipt.parents[2], receipt.parent.name
        view, shard = receipt.stem.split(".")
        array = cache / "data.zarr" / name
        candidates = [array / "c" / view / shard, *(array / "c").glob(f"{view}/{shard}/**/*")]
        if not (array / "c" / view).is_dir():
            candidates = [path for path in (array / "c").rglob("*") if path.is_file()]
        for path in (receipt, *candidates):
            if path.is_file() and not path.name.endswith(".partial"):
                stat = path.stat()
                found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found


def test_a_death_at_an_operation_on_s3_is_gone_on_with(seaweed, monkeypatch):
    for name, value in s3_environment(seaweed).items():
        monkeypatch.setenv(name, value)
    counting = Dying(InMemory())
    root = work(counting)
    for at in range(2, counting.count + 1, 7):
        store = open_objects(f"s3://{BUCKET}/resume-{os.getpid()}-{at}")
        with pytest.raises(Died):
            work(Dying(store, at=at, performed=at % 2 == 0))
        kept, computed = units_with_receipts(store), []
        assert work(store, computed=computed) == root
        assert kept.isdisjoint(computed)
        assert TeacherCache.open(store).root == root


# Workers that meet.


def test_two_writers_of_the_same_numbers_agree_and_one_seals():
    store = InMemory()
    one, other = begin(store), begin(store)
    assert (one.joined, other.joined) == (False, True)
    for unit in one.units:
        one.write(unit, arrays_of(one, unit), Note(seconds=1.0, device="one"))
        other.write(unit, arrays_of(other, unit), Note(seconds=2.0, device="other"))
    root = one.seal(summary_of(NUM_VIEWS)).root
    assert other.seal(summary_of(NUM_VIEWS).model_copy(update={"seconds": 9.0})).root == root
    assert TeacherCache.open(store).summary.seconds == 1.0
    assert root == work(InMemory())


def test_a_writer_of_other_numbers_fails_and_overwrites_nothing():
    store = InMemory()
    writer = begin(store)
    unit = writer.units[2]
    writer.write(unit, arrays_of(writer, unit), Note())
    before = dict(store.objects)
    other = {name: values + np.float16(1) for name, values in arrays_of(writer, unit).items()}
    with pytest.raises(ArtefactMismatch):
        writer.write(unit, other, Note())
    assert store.objects == before


def test_other_bytes_without_a_receipt_are_reported_with_the_way_out(tmp_path):
    store = LocalObjects(tmp_path / "caches" / "cache")
    writer = begin(store)
    unit = writer.units[0]
    spec = array_specs(writer.manifest)[LOGITS]
    rows = writer.manifest.rows_of(unit.shard)
    store.create(
        object_key(spec, unit.view, unit.shard),
        encode(spec, np.zeros((rows[1] - rows[0], *spec.shape[2:]), dtype=np.float16)),
    )
    with pytest.raises(ArtefactMismatch, match=r"without a receipt.*heartcut cache gc"):
        work(store)
    garbage.collect_garbage(
        tmp_path / "caches", delete=True, unsealed=False, hydrated=False, hours=0
    )
    assert work(store) == work(InMemory())


def test_a_cache_with_a_missing_unit_is_not_sealed():
    store = InMemory()
    writer = begin(store)
    for unit in writer.units[1:]:
        writer.write(unit, arrays_of(writer, unit), Note())
    with pytest.raises(ArtefactNotFound, match=r"receipts/logits/0\.0\.json"):
        writer.seal(summary_of(NUM_VIEWS))
    assert SEAL not in store.objects


def test_a_cache_with_a_missing_object_is_not_sealed(tmp_path):
    store = LocalObjects(tmp_path / "cache")
    writer = begin(store)
    for unit in writer.units:
        writer.write(unit, arrays_of(writer, unit), Note())
    gone = object_key(array_specs(writer.manifest)[LOGITS], 1, 0)
    store.delete(gone)
    with pytest.raises(ArtefactMismatch, match=re.escape(gone)):
        writer.seal(summary_of(NUM_VIEWS))
    assert store.size(SEAL) is None


# Writing behind.


class Gated(InMemory):
    """Creates nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def create(self, key, data):
        assert self.gate.wait(20)
        return super().create(key, data)


def test_writing_overlaps_computing_and_is_at_most_three_units_behind():
    store = Gated()
    writer, handed = begin(store), []
    store.gate.clear()

    def compute() -> None:
        with writing_behind(writer) as write:
            for unit in writer.units:
                write(unit, arrays_of(writer, unit), Note())
                handed.append(unit)

    computing = threading.Thread(target=compute)
    computing.start()
    deadline = time.monotonic() + 10
    while len(handed) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    assert handed == writer.units[:3]  # it went on although nothing is written, and then waited
    assert writer.missing() == writer.units
    store.gate.set()
    computing.join(10)
    assert not computing.is_alive()
    assert (handed, writer.missing()) == (writer.units, [])


@pytest.mark.parametrize("at_unit", [0, 3, 5])
def test_an_error_of_the_writer_reaches_the_one_who_computes(at_unit):
    class Full(InMemory):
        def create(self, key, data):
            if key == bad:
                raise PipelineError("the disk is full")
            return super().create(key, data)

    bad = ""
    store = Full()
    writer, handed = begin(store), []
    unit = writer.units[at_unit]
    bad = receipt_key(LOGITS, unit.view, unit.shard)

    def compute() -> None:
        with writing_behind(writer) as write:
            for one in writer.units:
                write(one, arrays_of(writer, one), Note())
                handed.append(one)
                time.sleep(0.02)

    with pytest.raises(PipelineError, match="the disk is full"):
        compute()
    assert len(handed) <= at_unit + 3  # it does not compute on and on for nothing
    assert unit in writer.missing()


def test_an_error_of_the_one_who_computes_loses_nothing_that_was_handed_over():
    writer = begin(InMemory())

    def compute() -> None:
        with writing_behind(writer) as write:
            for unit in writer.units[:2]:
                write(unit, arrays_of(writer, unit), Note())
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        compute()
    assert writer.missing() == writer.units[2:]


# Every sample, once.


def teacher_of(dataset: Dataset) -> Teacher:
    torch.manual_seed(0)
    model = build("resnet8a", num_classes=dataset.num_classes).eval().requires_grad_(False)
    return Teacher(
        model=model,
        digest="d" * 64,
        mean=dataset.record.mean,
        std=dataset.record.std,
        target_in_sample=False,
        description="an untrained teacher",
    )


@pytest.mark.parametrize(("batch_size", "shard_rows"), [(7, 13), (512, 9), (5, 74), (3, 1000)])
def test_every_sample_is_there_once_for_all_sizes(prepared, tmp_path, batch_size, shard_rows):
    """F13, F14: no padding with duplicates, no last batch dropped."""
    beton, teacher, views = prepared.train, teacher_of(prepared), ViewSpec(padding=2, count=2)
    runtime = resolve_runtime("fp32")
    assert beton.num_samples == 74
    assert cache_views_of(tmp_path, prepared, teacher, views, batch_size, shard_rows) == 0
    cache = TeacherCache.open(tmp_path / "cache")
    assert np.array_equal(cache.keys, beton.samples.keys)
    assert np.array_equal(cache.labels, beton.samples.labels)
    assert len(np.unique(cache.keys, axis=0)) == 74
    normalise = Normaliser(mean=teacher.mean, std=teacher.std, device=runtime.device)
    alone = BatchLoader(beton, batch_size=74, view_spec=views)
    for view in range(3):
        (batch,) = alone.view(view)
        with torch.inference_mode():
            logits, features = teacher_outputs(teacher.model, normalise, batch, runtime=runtime)
        rows = [cache.manifest.rows_of(shard) for shard in range(cache.manifest.num_shards)]
        assert [stop - start for start, stop in rows] == [
            min(shard_rows, 74 - start) for start in range(0, 74, shard_rows)
        ]
        for stored, exact in ((cache.logits(view), logits), (cache.features(view), features)):
            exact = exact.numpy()
            assert stored.shape == exact.shape
            distances = np.abs(stored[:, None].astype(np.float32) - exact[None]).max(axis=2)
            assert np.array_equal(distances.argmin(axis=1), np.arange(74))
            assert distances.diagonal().max() < 0.01


def cache_views_of(folder, dataset, teacher, views, batch_size, shard_rows, share=None) -> int:
    runtime = resolve_runtime("fp32")
    beton = dataset.train
    kept = KeptOutputs(features=True)
    planned = TeacherPass(
        teacher=teacher,
        loader=BatchLoader(beton, batch_size=batch_size, view_spec=views),
        beton=beton,
        views=views,
        runtime=runtime,
        held_out=dataset.held_out,
    )
    return cache_views(
        open_objects(folder / "cache"),
        planned,
        identity=cache_identity(teacher, beton=beton, views=views, runtime=runtime, kept=kept),
        layout=CacheLayout(shard_rows=shard_rows),
        share=share,
    )


# The real command.


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory) -> Path:
    run = teacher_run_path(digits, Dataset.open(digits.data_folder))
    path = tmp_path_factory.mktemp("checkpoint") / "teacher.safetensors"
    shutil.copy(run / "model.safetensors", path)
    return path


SETTINGS = (
    "cache_teacher.arch=resnet8a",
    "cache_teacher.shard_rows=64",
    "cache_teacher.check_teacher=off",
    "views.padding=1",
    "views.flip=true",
    "views.count=all",
)
NUM_UNITS = (19 * 8, 22)
"""Units of 450 training images in 19 views, and of 1,347 test images."""


class Job:
    """`cache-teacher` in a workspace of its own."""

    def __init__(self, digits, tiny_toml: Path, checkpoint: Path, folder: Path, *more: str) -> None:
        self.workspace = folder / "work"
        shutil.copytree(digits.data_folder, self.workspace / "data")
        self.caches = self.workspace / "caches"
        settings = [f"workspace={self.workspace}", f"cache_teacher.checkpoint={checkpoint}"]
        options = [part for one in (*settings, *SETTINGS, *more) for part in ("--set", one)]
        self.command = ["cache-teacher", tiny_toml, *options]

    def receipts(self) -> int:
        return sum(1 for _ in self.caches.glob("*/receipts/*/*.json"))

    def units(self) -> list[int]:
        """Complete units of each cache that was begun, the larger first."""
        found = []
        for cache in self.caches.glob("*/receipts"):
            logits, features = (
                {path.name for path in (cache / name).glob("*.json")} for name in (LOGITS, FEATURES)
            )
            found.append(len(logits & features))
        return sorted(found, reverse=True)

    def roots(self) -> set[str]:
        return {TeacherCache.open(seal.parent).root for seal in self.caches.glob("*/sealed.json")}


@pytest.fixture(scope="module")
def new_job(digits, tiny_toml, checkpoint, in_memory):
    return lambda *more: Job(digits, tiny_toml, checkpoint, in_memory(), *more)


@pytest.fixture(scope="module")
def clean_roots(new_job) -> set[str]:
    """Root hashes of both caches of a run that nothing disturbed."""
    job = new_job()
    done = heartcut(*job.command)
    assert (done.code, done.err) == (0, "")
    assert job.units() == list(NUM_UNITS)
    roots = job.roots()
    assert len(roots) == 2
    return roots


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, NUM_WORKERS])
def test_many_kills_leave_the_cache_of_a_clean_run(
    server, new_job, clean_roots, tmp_path, num_workers
):
    draws = np.random.default_rng(num_workers)
    job, kept, num_killed, in_between = new_job(), {}, 0, 0
    while num_killed < NUM_KILLS[num_workers]:
        goal = job.receipts() + int(draws.integers(0, 12 * num_workers))
        patience = draws.uniform(0.1, 2.0) if draws.random() < 0.3 else 30.0
        running = [
            server.start(tmp_path / f"{num_killed}-{number}", *job.command)
            for number in range(num_workers)
        ]
        start = time.monotonic()
        while job.receipts() <= goal and time.monotonic() < start + patience:
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.02))
        for one in running:
            one.signal(signal.SIGKILL)
        codes = [one.wait().code for one in running]
        assert set(codes) <= {-signal.SIGKILL, 0}, codes
        if 0 in codes:  # this machine is fast: all was done before the kills were
            assert job.roots() == clean_roots
            job, kept = new_job(), {}
            continue
        num_killed += len(codes)
        now = inodes_of_kept(job.caches)
        assert kept.items() <= now.items()
        in_between += len(now) > len(kept)
        kept = now
    assert in_between > 2  # the kills met workers at work
    num_kept = job.units()
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    assert f"{num_kept[0]} of {NUM_UNITS[0]} shards are kept already" in done.err or (
        num_kept[0] == NUM_UNITS[0]
    )
    assert job.roots() == clean_roots
    assert kept.items() <= inodes_of_kept(job.caches).items()


def test_an_interrupt_reports_what_is_kept_and_a_later_run_resumes(
    server, new_job, clean_roots, tmp_path
):
    job, kept = new_job(), 0
    for attempt in range(3):
        running = server.start(tmp_path / f"{attempt}", *job.command)
        while job.receipts() < 2 * kept + 10 and running.is_running:
            time.sleep(0.001)
        running.signal(signal.SIGINT)
        done = running.wait()
        assert (done.shell_code, done.out) == (130, "")
        assert done.err.count("\n") == 2, done.err
        kept_line, last = done.err.splitlines()
        assert last == INTERRUPTED
        found = re.fullmatch(
            r"(\S+) keeps (\d+) of (\d+) shards(?: and \d+ images of unfinished ones)?: "
            r"run the same command again to compute the (\d+) left",
            kept_line,
        )
        assert found is not None, kept_line
        assert Path(found[1]).parent == job.caches
        assert [int(found[2])] == job.units()
        assert int(found[2]) + int(found[4]) == int(found[3]) == NUM_UNITS[0]
        assert int(found[2]) > kept
        assert not list(job.caches.rglob("*.partial"))
        assert not list(job.caches.rglob("sealed.json"))
        kept = int(found[2])
    done = heartcut(*job.command, quiet=False)
    assert done.code == 0
    assert mentions(done.err, kept, NUM_UNITS[0], "shards")
    assert job.roots() == clean_roots


def test_two_disjoint_ranges_at_once_make_the_cache_and_the_last_one_seals(
    server, new_job, clean_roots, tmp_path
):
    job, total = new_job(), sum(NUM_UNITS)
    running = [
        server.start(tmp_path / part, *job.command, "--shard-range", part)
        for part in (f"0:{total // 2}", f"{total // 2}:{total}")
    ]
    done = [one.wait() for one in running]
    assert [one.code for one in done] == [0, 0]
    assert any(one.out for one in done)
    assert job.roots() == clean_roots


def test_a_range_leaves_the_rest_to_others_and_says_so(new_job, clean_roots):
    job = new_job()
    first = heartcut(*job.command, "--shard-range", "0:3", quiet=False)
    assert (first.code, first.out) == (0, "")
    assert mentions(first.err, NUM_UNITS[0] - 3, "shards")
    assert job.units() == [3, 0]
    assert job.roots() == set()
    overlapping = heartcut(*job.command, "--shard-range", "2:5")
    assert (overlapping.code, job.units()) == (0, [5, 0])
    test_images = f"{NUM_UNITS[0]}:{sum(NUM_UNITS)}"
    assert heartcut(*job.command, "--shard-range", test_images).code == 0
    assert len(job.roots()) == 1  # of the test images
    last = heartcut(*job.command, "--shard-range", f"4:{sum(NUM_UNITS)}")
    assert Path(last.out.strip()).parent == job.caches
    assert job.roots() == clean_roots


@pytest.mark.parametrize("wrong", ["3", "3:3", "5:2", "a:b", "-1:4"])
def test_an_invalid_range_is_rejected_in_one_line(new_job, wrong):
    job = new_job()
    line = heartcut(*job.command, f"--shard-range={wrong}").error_line
    assert "is not a range (expected FIRST:STOP" in line
    assert not job.caches.exists()


def test_a_rank_without_an_address_learns_how_to_start_ranks(new_job, monkeypatch):
    job = new_job()
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    line = heartcut(*job.command).error_line
    assert "MASTER_ADDR is not set" in line
    assert "heartcut launch" in line
    assert not job.caches.exists()


def test_another_shard_size_joins_what_was_begun(new_job, clean_roots):
    job = new_job()
    assert heartcut(*job.command, "--shard-range", "0:5").code == 0
    assert heartcut(*job.command, "--set", "cache_teacher.shard_rows=100").code == 0
    assert clean_roots & job.roots()  # the one that was begun; the other is cut in its own way
    assert NUM_UNITS[0] in job.units()


def test_a_unit_that_another_worker_computed_otherwise_is_rejected(new_job):
    job = new_job()
    assert heartcut(*job.command, "--shard-range", "0:2").code == 0
    cache = next(path for path in job.caches.glob("*") if list(path.glob("receipts/logits/*")))
    store = LocalObjects(cache)
    spec = array_specs(read_manifest(store))[LOGITS]
    values = np.zeros((64, 10), dtype=np.float16)
    data = encode(spec, values)
    for key in (object_key(spec, 0, 1), receipt_key(LOGITS, 0, 1), receipt_key(FEATURES, 0, 1)):
        store.delete(key)
    store.create(object_key(spec, 0, 1), data)
    receipt = Receipt.of(facts_of(data, values, rows=(64, 128)), Note())
    create_receipt(store, receipt_key(LOGITS, 0, 1), receipt)
    before = snapshot(cache)
    done = heartcut(*job.command)
    assert (done.code, done.out) == (1, "")
    kept_line, error = done.err.splitlines()
    assert "shards: run the same command again" in kept_line
    assert error.startswith(f"error: {cache}/{object_key(spec, 0, 1)} exists with other bytes")
    assert "nothing was overwritten" in error
    assert before.items() <= snapshot(cache).items()
    assert not (cache / "sealed.json").exists()


def test_a_receipt_is_never_replaced_by_one_of_other_numbers(tmp_path):
    store = LocalObjects(tmp_path / "cache")
    writer = begin(store)
    for unit in writer.units:
        writer.write(unit, arrays_of(writer, unit), Note())
    key = receipt_key(LOGITS, 0, 0)
    old = read_receipt(store, key)
    other = old.facts.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ArtefactMismatch, match="workers"):
        create_receipt(store, key, Receipt.of(other, Note()))
    assert read_receipt(store, key) == old


def test_resuming_computes_only_the_rows_of_what_is_missing(prepared, tmp_path):
    """Counted where the teacher runs, in full batches of 5: 13 rows are 15, and 9 are 10."""
    teacher, views = teacher_of(prepared), ViewSpec(padding=2, count=2)
    seen: list[int] = []
    first = next(module for module in teacher.model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    left = cache_views_of(tmp_path, prepared, teacher, views, 5, 13, share=lambda u: u[:4])
    assert (left, sum(seen)) == (18 - 4, 4 * 15)
    seen.clear()
    assert cache_views_of(tmp_path, prepared, teacher, views, 5, 13) == 0
    assert sum(seen) == 3 * (5 * 15 + 10) - 4 * 15
    seen.clear()
    assert cache_views_of(tmp_path, prepared, teacher, views, 5, 13) == 0
    assert seen == []


def test_samples_in_another_order_never_join_a_cache_that_was_begun():
    """They have the same identity, so their rows would be mixed up without a word."""
    store = InMemory()
    writer = begin(store)
    writer.write(writer.units[0], arrays_of(writer, writer.units[0]), Note())
    small = job(store)
    keys, labels = small.contents.keys[::-1], small.contents.labels[::-1]
    before = dict(store.objects)
    with pytest.raises(ArtefactMismatch, match=r"prepare\.order"):
        small.begin(contents=replace(small.contents, keys=keys, labels=labels))
    assert store.objects == before


def test_a_range_beyond_the_last_shard_is_rejected(new_job):
    done = heartcut(*new_job().command, "--shard-range", "100000:100001")
    assert done.code == 1
    assert mentions(done.error_line, "100000:100001")
