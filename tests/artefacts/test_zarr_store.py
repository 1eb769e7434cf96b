"""The stores between zarr and a cache: zarr sees verified bytes alone, and creates objects once."""

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs.checksum32 import CRC32C

from pipeline.artefacts.cache.arrays import FEATURES, LOGITS
from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.zarr_arrays import (
    ZARR_JSON,
    ArraySpec,
    array_metadata,
    decode,
    group_metadata,
)
from pipeline.artefacts.zarr_store import NewArrays, encode
from pipeline.errors import Damaged, PipelineError
from pipeline.runtime.coroutines import run_here
from tests.support.commands import ROOT
from tests.support.small_caches import KINDS, SmallCache, vouch
from tests.support.workspaces import flipped, replace_bytes

SPEC = ArraySpec(
    name="a",
    shape=(2, 7, 3),
    dtype="float16",
    dimensions=("view", "sample", "class"),
    shard_rows=4,
)
TEXTS = {ZARR_JSON: group_metadata({}), f"a/{ZARR_JSON}": array_metadata(SPEC)}
ROWS = np.arange(12, dtype=np.float16).reshape(4, 3)


@pytest.fixture
def small(tmp_path: Path) -> SmallCache:
    result = SmallCache(tmp_path / "cache")
    result.write()
    return result


def shards(small: SmallCache, name: str = LOGITS) -> list[Path]:
    return sorted(path for path in small.objects() if name in path.parts)


# Reading


@pytest.mark.parametrize("kind", KINDS)
def test_the_group_holds_what_was_written(tmp_path, kind):
    small = SmallCache(tmp_path / "cache", **KINDS[kind])
    group = small.write().group()
    names = {"labels", "keys", "pixels", "head_weight", "head_bias", *small.arrays}
    assert {*group.array_keys()} == names
    assert group.attrs["heartcut"]["id"] == small.identity.id
    for name, values in small.arrays.items():
        assert np.array_equal(group[name][:], values)
        assert np.array_equal(group[name][-1, :1], values[-1, :1])
        assert np.array_equal(group[name].oindex[0, [0, -1]], values[0, [0, -1]])
    assert np.array_equal(group["labels"][:], small.contents.labels)
    assert np.array_equal(group["head_weight"][:], small.contents.head_weight)
    assert "evil" not in group


def test_the_group_is_read_only(small):
    group = TeacherCache.open(small.path).group()
    with pytest.raises(ValueError, match="read-only"):
        group["logits"][0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        group.create_group("more")
    with pytest.raises(ValueError, match="read-only"):
        group.attrs["more"] = 1
    assert small.matches(TeacherCache.open(small.path))


def test_a_missing_object_is_an_error_and_no_fill_value(small):
    cache = TeacherCache.open(small.path)
    for path in small.objects():
        data = path.read_bytes()
        path.unlink()
        name = path.relative_to(small.path / "data.zarr").parts[0]
        with pytest.raises(Damaged, match=rf"{path} is missing"):
            cache.group()[name][:]
        path.write_bytes(data)


def test_every_flipped_byte_is_rejected(small):
    cache = TeacherCache.open(small.path)
    for path in (shards(small)[0], shards(small, FEATURES)[-1]):
        name = path.relative_to(small.path / "data.zarr").parts[0]
        for offset in range(path.stat().st_size):
            with flipped(path, offset), pytest.raises(Damaged, match="has other contents"):
                cache.group()[name][:]
            with flipped(path, offset), pytest.raises(Damaged, match="has other contents"):
                cache.group()[name][1 if "1" in path.parts else 0, -1 if "1" in path.parts else 0]


def test_an_empty_object_is_rejected(small):
    cache = TeacherCache.open(small.path)
    replace_bytes(shards(small)[0], b"")
    with pytest.raises(Damaged, match=r"has 0 bytes \(expected"):
        cache.group()["logits"][:]


HOSTILE = {
    "a bomb": (b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x03\x00\x10\x07", ()),
    "a chunk twice": (b"", (0, 0)),
    "out of range": (b"", (0, 1 << 40)),
    "beyond": (b"", (1 << 63, 16)),
    "missing": (b"", ((1 << 64) - 1, (1 << 64) - 1)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_shard_is_rejected_even_if_it_was_sealed(small, kind):
    chunk, place = HOSTILE[kind]
    true = shards(small)[0].read_bytes()[:-24]
    chunk = bytes(CRC32C().encode(chunk)) if chunk else true
    index = np.array(place or (0, len(chunk)), "<u8").tobytes()
    replace_bytes(shards(small)[0], chunk + bytes(CRC32C().encode(index)))
    vouch(small, LOGITS, 0, 0)
    group = TeacherCache.open(small.path).group()
    for place in (np.s_[:], np.s_[0, 0], np.s_[0, :4]):
        with pytest.raises(Damaged, match=r"is damaged: .*(claims to hold|points elsewhere)"):
            group["logits"][place]


def test_a_wrong_checksum_is_rejected_even_if_it_was_sealed(small):
    path = shards(small)[0]
    data = bytearray(path.read_bytes())
    data[-25] ^= 1  # the last byte of the chunk's CRC-32C
    replace_bytes(path, bytes(data))
    vouch(small, LOGITS, 0, 0)
    cache = TeacherCache.open(small.path)
    with pytest.raises(ValueError, match="checksum"):
        cache.group()["logits"][:]
    with pytest.raises(Damaged, match="CRC-32C"):
        cache.logits(0)


def test_an_object_that_is_read_in_parts_is_read_once(small, monkeypatch):
    cache, read = TeacherCache.open(small.path), []
    real = type(small.store).read
    monkeypatch.setattr(
        type(small.store),
        "read",
        lambda self, key, **limit: read.append(key) or real(self, key, **limit),
    )
    group = cache.group()
    for row in range(4):
        group["logits"][0, row]
    assert read == ["data.zarr/logits/c/0/0/0"]


# Writing


def test_an_object_is_created_once_with_what_its_receipt_needs():
    created: list[tuple[str, bytes]] = []

    def create(key, data) -> bool:
        created.append((key, bytes(data)))
        return len(created) > 3

    arrays = NewArrays({"a": SPEC}, {}, TEXTS, create)
    assert created == list(TEXTS.items())
    for _ in range(2):
        made = arrays.write("a", 1, 0, ROWS)
        key, data = created[-1]
        assert (key, made.bytes, made.sha256) == ("a/c/1/0/0", len(data), sha256(data).hexdigest())
    assert created[-1] == created[-2]
    assert len(created) == 4


def test_what_is_there_is_never_merged_with(tmp_path):
    """Rows of a last shard that is not full, over a shard that was full."""
    whole = encode(SPEC, ROWS)
    part = encode(SPEC, ROWS[:3])
    assert np.array_equal(decode(SPEC, whole, 4), ROWS)
    assert np.array_equal(decode(SPEC, part, 3), ROWS[:3])
    small = SmallCache(tmp_path / "cache")
    writer = small.filled()
    for unit in writer.units:
        before = {path: path.stat().st_ino for path in small.objects()}
        writer.write(unit, small.unit(writer, unit), Note())
        assert before == {path: path.stat().st_ino for path in small.objects()}


def test_a_description_of_another_format_is_not_written():
    created: list[str] = []
    other = dict(TEXTS) | {f"a/{ZARR_JSON}": TEXTS[f"a/{ZARR_JSON}"].replace(b"zstd", b"gzip")}
    with pytest.raises(PipelineError, match=rf"zarr {zarr.__version__} describes a/zarr.json"):
        NewArrays({"a": SPEC}, {}, other, lambda key, _: created.append(key) or True)
    assert created == [ZARR_JSON]


# Threads, forks and interrupts


def test_writing_starts_no_thread():
    before = set(threading.enumerate())
    encode(SPEC, ROWS)
    assert set(threading.enumerate()) == before


def test_it_works_where_an_event_loop_runs_as_in_a_notebook(small):
    async def cell() -> bool:
        return np.array_equal(decode(SPEC, encode(SPEC, ROWS), 4), ROWS) and np.array_equal(
            TeacherCache.open(small.path).group()["labels"][:], small.contents.labels
        )

    assert asyncio.run(cell())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, GeneratorExit])
def test_an_interrupt_while_an_object_is_created_leaves_nothing_behind(error, capfd):
    created: list[str] = []

    def create(key, _) -> bool:
        created.append(key)
        if len(created) > len(TEXTS):
            raise error
        return True

    arrays = NewArrays({"a": SPEC}, {}, TEXTS, create)
    with pytest.raises(error):
        arrays.write("a", 0, 0, ROWS)
    assert len(created) == len(TEXTS) + 1
    assert capfd.readouterr() == ("", "")


def test_what_is_left_of_zarrs_work_is_cancelled_on_an_error():
    done: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        if number == 0:
            raise OSError("first")
        done.append(number)

    async def work() -> None:
        await asyncio.gather(*map(one, range(3)))

    with pytest.raises(OSError, match="first"):
        run_here(work())
    assert done == []


FORKED = """
import os, sys
import numpy as np
from pathlib import Path
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from tests.support.small_caches import SmallCache
folder = Path(sys.argv[1])
small = SmallCache(folder / "parent")
cache = small.write()
group = cache.group()
assert group["logits"][0].shape == (7, 3)  # now zarr's threads run
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        other = SmallCache(folder / str(number))
        same = other.matches(other.write())
        again = np.array_equal(cache.group()["logits"][:], small.arrays["logits"])
        held = np.array_equal(group["features"][:], small.arrays["features"])
        os._exit(0 if same and again and held else 1)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
"""


def test_forked_processes_write_and_read(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)],
        cwd=ROOT,
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stages_start_without_zarr():
    names = ("select", "train_student", "cache_teacher", "cache.costs")
    line = f"import sys; {'; '.join(f'import stages.{name}' for name in names)}; "
    line += "sys.exit('zarr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_loop_whose_construction_was_interrupted_is_removed_in_silence(monkeypatch):
    silenced: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", silenced.append)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(socket, "socketpair", interrupted)

    async def work() -> None:
        """Nothing."""

    coroutine = work()
    with pytest.raises(KeyboardInterrupt):
        run_here(coroutine)
    coroutine.close()
    gc.collect()
    assert silenced == []
