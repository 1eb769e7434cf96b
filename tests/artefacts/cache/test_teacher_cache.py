"""The teacher cache: what was written is read, damage is reported, and nothing is overwritten."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.artefacts.cache.arrays import (
    FEATURES,
    LOGITS,
    LOGSUMEXP,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
    default_shard_rows,
    object_names,
    view_arrays,
)
from pipeline.artefacts.cache.receipts import Note, Seal
from pipeline.artefacts.cache.record import (
    CacheIdentity,
    CacheLayout,
    CacheManifest,
    CacheShape,
    Fidelity,
)
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import Checked, check_cache
from pipeline.artefacts.cache.writer import as_float16, writing_behind
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.zarr_store import encode
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, NotSealed, PipelineError
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity
from pipeline.teacher.summary import storage_fidelity, summarise_cache
from stages import cache_teacher
from stages.caches import Caches
from stages.config.file import with_overrides
from tests.support.small_caches import (
    KINDS,
    TAUS,
    SmallCache,
    digest_of,
    edited,
    identity_of,
    reseal,
    summary_of,
    top_k_of,
)
from tests.support.workspaces import flipped, linked_copy, read_or_refusal, replace_bytes, snapshot

ORDER = [3, 1, 0, 2]
"""In which the units of a small cache are written."""


each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def unfinished(tmp_path: Path) -> SmallCache:
    """The same, with the first of four units and without a seal."""
    result = SmallCache(tmp_path / "cache")
    writer = result.begin()
    writer.write(writer.units[0], result.unit(writer, writer.units[0]), Note())
    return result


# Writing and reading


@each_kind
def test_what_is_read_is_what_was_written(tmp_path, kind):
    small = SmallCache(tmp_path / "cache", **KINDS[kind])
    cache = small.write()
    assert small.matches(cache)
    assert (cache.shape, cache.id) == (small.shape, small.identity.id)
    assert cache.summary == summary_of(small.shape.num_views)
    checked = check_cache(small.store, read_bytes=True)
    sizes = [path.stat().st_size for path in small.objects()]
    assert checked == Checked(num_objects=len(sizes), num_bytes=sum(sizes), problems=[], unknown=[])


def test_arrays_read_in_their_documented_types(small):
    cache = TeacherCache.open(small.path)
    assert np.array_equal(cache.logits(1), small.arrays[LOGITS][1])
    assert np.array_equal(cache.features(1), small.arrays[FEATURES][1])
    weight, bias = cache.head
    arrays = [cache.logits(0), cache.features(0), cache.labels, cache.keys, cache.pixels]
    assert [array.dtype.name for array in (*arrays, weight, bias)] == [
        *("float16", "float16", "int64", "uint8", "uint8", "float32", "float32")
    ]
    assert np.array_equal(cache.top_classes(1), small.arrays[LOGITS][1].argmax(axis=1))
    assert cache.top_classes(1).dtype == np.int64


def test_the_top_classes_are_the_same_of_all_logits_and_of_the_top_k(tmp_path):
    dense = SmallCache(tmp_path / "dense").write()
    sparse = SmallCache(tmp_path / "sparse", top_k=2).write()
    for view in range(2):
        assert np.array_equal(dense.top_classes(view), sparse.top_classes(view))
    with pytest.raises(ArtefactMismatch, match=r"keeps the top 2 logits.*top_k = 0"):
        sparse.logits(0)
    sparse.require_temperature(4.0)
    with pytest.raises(ArtefactMismatch, match=r"at temperature 1 and 4 \(expected 2"):
        sparse.require_temperature(2.0)


@each_kind
def test_any_zarr_reader_opens_the_data(tmp_path, kind):
    small = SmallCache(tmp_path / "cache", **KINDS[kind])
    small.write()
    group = zarr.open_group(small.path / "data.zarr", mode="r", zarr_format=3)
    assert group.attrs["heartcut"]["id"] == small.identity.id
    for name, values in small.arrays.items():
        assert np.array_equal(group[name][:], values)
        assert group[name].dtype == values.dtype
    assert np.array_equal(group["labels"][:], small.contents.labels)
    assert np.array_equal(group["keys"][:], small.contents.keys)
    assert np.array_equal(group["pixels"][:], small.contents.pixels)
    assert np.array_equal(group["head_weight"][:], small.contents.head_weight)
    assert np.array_equal(group["head_bias"][:], small.contents.head_bias)
    assert {*group.array_keys()} == {
        *("labels", "keys", "pixels", "head_weight", "head_bias", *small.arrays)
    }


def test_units_may_come_in_any_order_and_twice(small, tmp_path):
    other = SmallCache(tmp_path / "other")
    writer = other.filled(order=[*ORDER, *reversed(ORDER)])
    assert writer.missing() == []
    writer.seal(summary_of(seconds=2.0, devices=["another"]))
    again = TeacherCache.open(other.path)
    assert again.root == TeacherCache.open(small.path).root
    assert other.matches(again)


def test_views_are_written_behind_the_teacher(small, tmp_path):
    other = SmallCache(tmp_path / "other")
    writer = other.begin()
    with writing_behind(writer) as write:
        for unit in writer.units:
            write(unit, other.unit(writer, unit), Note())
    assert writer.seal(summary_of()).root == TeacherCache.open(small.path).root


def test_an_error_of_the_writer_behind_is_raised(unfinished):
    writer = unfinished.begin()
    arrays = {name: -values for name, values in unfinished.unit(writer, writer.units[0]).items()}
    with (
        pytest.raises(ArtefactMismatch, match="nothing was overwritten"),
        writing_behind(writer) as write,
    ):
        write(writer.units[0], arrays, Note())


def test_the_complement_of_the_receipts_is_missing(unfinished):
    writer = unfinished.begin()
    first, *others = writer.units
    assert (writer.joined, writer.missing()) == (True, others)
    assert [writer.has(unit) for unit in writer.units] == [True, False, False, False]
    (unfinished.path / "receipts/features/0.0.json").unlink()
    assert writer.missing() == [first, *others]
    unfinished.filled().seal(summary_of())
    assert unfinished.matches(TeacherCache.open(unfinished.path))


@pytest.mark.parametrize("name", [LOGITS, FEATURES])
def test_other_numbers_for_a_unit_fail_and_overwrite_nothing(unfinished, name):
    writer, before = unfinished.begin(), snapshot(unfinished.path)
    arrays = unfinished.unit(writer, writer.units[0])
    changed = arrays[name].copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.float16(9))
    with pytest.raises(ArtefactMismatch, match="nothing was overwritten"):
        writer.write(writer.units[0], arrays | {name: changed}, Note())
    assert snapshot(unfinished.path) == before


def test_a_receipt_for_other_numbers_fails(unfinished):
    writer = unfinished.begin()
    (unfinished.path / "data.zarr/logits/c/0/0/0").unlink()
    arrays = unfinished.unit(writer, writer.units[0])
    with pytest.raises(ArtefactMismatch, match=r"records other numbers.*Nothing was over"):
        writer.write(writer.units[0], arrays | {LOGITS: -arrays[LOGITS]}, Note())


def test_joining_keeps_the_first_layout(unfinished):
    writer = unfinished.begin(layout=CacheLayout(shard_rows=2, codec="none"))
    assert writer.manifest.layout == unfinished.layout
    assert len(writer.units) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"identity": identity_of(weights="d" * 64)},
        {"shape": CacheShape(num_views=2, num_samples=7, num_classes=4, num_features=2)},
    ],
    ids=["identity", "shape"],
)
def test_another_cache_is_not_joined(unfinished, change):
    before = snapshot(unfinished.path)
    with pytest.raises(ArtefactMismatch, match="holds another teacher cache"):
        unfinished.begin(**change)
    assert snapshot(unfinished.path) == before


def test_sealing_needs_every_unit(unfinished):
    with pytest.raises(ArtefactNotFound, match=r"receipts/.*does not exist"):
        unfinished.begin().seal(summary_of())
    assert not (unfinished.path / "sealed.json").exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_sealing_needs_every_object_that_has_a_receipt(tmp_path, damage):
    small = SmallCache(tmp_path / "cache")
    writer = small.filled()
    for path in small.objects():
        data = path.read_bytes()
        replace_bytes(path, data[:-1])
        if damage == "missing":
            path.unlink()
        with pytest.raises(ArtefactMismatch, match=rf"{path} has [\d,]+ bytes \(expected"):
            writer.seal(summary_of())
        path.write_bytes(data)
    assert not (small.path / "sealed.json").exists()


def test_a_cache_is_sealed_once(small):
    writer, before = small.begin(), snapshot(small.path)
    assert small.store.size("sealed.json")
    assert writer.seal(summary_of(num_wrong=4)).summary == summary_of()
    assert snapshot(small.path) == before


def test_an_unsealed_cache_and_no_cache_raise_different_errors(unfinished, tmp_path):
    with pytest.raises(NotSealed, match=r"is not sealed.*cache-teacher"):
        TeacherCache.open(unfinished.path)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ArtefactNotFound, match="is not a teacher cache") as refused:
            TeacherCache.open(path)
        assert not isinstance(refused.value, NotSealed)


def test_a_copied_cache_is_the_same_cache(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "elsewhere")
    copied, original = TeacherCache.open(tmp_path / "elsewhere"), TeacherCache.open(small.path)
    assert (copied.id, copied.seal) == (original.id, original.seal)
    assert small.matches(copied)


# Identity

CHANGES = [
    {"weights": "d" * 64},
    {"arch": "resnet20a"},
    {"fingerprint": "d" * 64},
    {"pixel_digest": "d" * 64},
    {"mean": (0.5, 0.5, 0.51)},
    {"std": (0.25, 0.2, 0.25)},
    {"views": {"padding": 4, "flip": True, "count": 1, "seed": 1}},
    {"precision": "bf16"},
    {"features": False},
    {"top_k": 5},
    {"temperatures": (1.0, 4.0)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_field_of_the_identity_changes_the_id(change):
    assert identity_of(**change).id != identity_of().id


def test_no_field_of_the_identity_was_forgotten_above():
    assert [next(iter(change)) for change in CHANGES] == [*CacheIdentity.model_fields]


def test_the_id_is_the_same_on_any_machine_and_in_any_year():
    assert identity_of().id == ("711f937bf8084929b1fcecc82feb26b7bfe58c4a725899d1f3783970e46c2f33")


# What float16 cannot hold


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_505.0, -1e30])
def test_what_float16_cannot_hold_is_rejected_with_sample_and_view(value):
    rows = np.ones((5, 3), np.float32)
    rows[3, 1] = value
    with pytest.raises(PipelineError, match=r"logits of sample 11 in view 2 reach .*65504"):
        as_float16(rows, name="logits", view=2, first_sample=8)


def test_the_largest_float16_is_stored():
    rows = np.array([[65_504.0, -65_504.0, 1e-8]], np.float32)
    stored = as_float16(rows, name="logits", view=0, first_sample=0)
    assert (stored.dtype, stored.tolist()) == (np.float16, [[65_504.0, -65_504.0, 0.0]])


# Damage


def names_of(path: Path) -> str:
    """The array that an object belongs to."""
    parts = path.parts
    return parts[parts.index("data.zarr") + 1]


def problems_of(small: SmallCache, *, read_bytes: bool = True) -> list[str]:
    checked = read_or_refusal(lambda: check_cache(small.store, read_bytes=read_bytes))
    return [checked] if isinstance(checked, str) else checked.problems


@pytest.fixture(scope="module")
def tiniest(tmp_path_factory) -> SmallCache:
    """One view of three samples in two shards; each test leaves it as it was."""
    result = SmallCache(
        tmp_path_factory.mktemp("tiniest") / "c",
        num_views=1,
        num_samples=3,
        shard_rows=2,
        features=False,
    )
    result.write()
    return result


@pytest.fixture(scope="module")
def files(tiniest) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(tiniest.path.rglob("*")) if path.is_file()}


TOP = ("manifest.json", "sealed.json")


@contextmanager
def replaced(path: Path, data: bytes | None) -> Iterator[None]:
    """Other contents for a while, or no file."""
    before = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_flipped_byte_anywhere_is_rejected_or_nothing_that_is_read(tiniest, files):
    num_rejected = 0
    for path, data in files.items():
        if "receipts" in path.parts:
            continue
        for offset in range(len(data)):
            with flipped(path, offset, mask=(0xFF, 0x20, 0x01)[offset % 3]):
                read = read_or_refusal(lambda: tiniest.matches(TeacherCache.open(tiniest.path)))
            assert isinstance(read, str), (path, offset)
            num_rejected += 1
    assert num_rejected > 7000


def test_a_flipped_byte_in_a_receipt_leaves_a_sealed_cache_readable(tiniest, files):
    receipts = {path: len(data) for path, data in files.items() if "receipts" in path.parts}
    for offset in range(0, max(receipts.values()), 7):
        with ExitStack() as stack:
            for path, size in receipts.items():
                stack.enter_context(flipped(path, offset % size))
            assert tiniest.matches(TeacherCache.open(tiniest.path))


def test_verifying_finds_every_flipped_byte_of_every_object(tiniest, files):
    assert problems_of(tiniest) == []
    below = {path: data for path, data in files.items() if path.name not in TOP}
    for offset in range(max(map(len, below.values()))):  # in all of them at once
        damaged = [path for path, data in below.items() if offset < len(data)]
        with ExitStack() as stack:
            for path in damaged:
                stack.enter_context(flipped(path, offset, mask=(0xFF, 0x20, 0x01)[offset % 3]))
            problems = problems_of(tiniest)
        assert len(problems) == len(damaged), offset
        for path in damaged:
            assert sum(f"{path} " in problem for problem in problems) == 1, (path, offset)
    for name in TOP:
        path = tiniest.path / name
        for offset in range(len(files[path])):
            with flipped(path, offset):
                assert problems_of(tiniest), (path, offset)
    assert problems_of(tiniest) == []


def lengths_of(path: Path, data: bytes) -> list[int | None]:
    """Every length of what is small, every 97th of what is not; None: the file is missing."""
    stride = 1 if path.suffix != ".json" else 97
    return [None, 0, *range(1, len(data) - 1, stride), len(data) - 1]


def test_every_truncation_and_every_missing_object_is_rejected_and_found(tiniest, files):
    for path, data in files.items():
        for length in lengths_of(path, data):
            with replaced(path, None if length is None else data[:length]):
                read = read_or_refusal(lambda: tiniest.matches(TeacherCache.open(tiniest.path)))
                if "receipts" in path.parts:
                    assert read is True, (path, length)
                else:
                    assert isinstance(read, str), (path, length)
                assert problems_of(tiniest), (path, length)
    assert problems_of(tiniest) == []


def test_a_longer_object_is_rejected_and_found(tiniest, files):
    for path, data in files.items():
        for extra in (b"\0", b"\n", data):
            with replaced(path, data + extra):
                assert problems_of(tiniest), (path, extra)
                read = read_or_refusal(lambda: tiniest.matches(TeacherCache.open(tiniest.path)))
                assert isinstance(read, str) or "receipts" in path.parts


def test_structure_alone_finds_missing_objects_and_wrong_sizes(tiniest, files):
    for path, data in files.items():
        for changed in (None, b"", data[:-1], data + b"\0"):
            with replaced(path, changed):
                problems = problems_of(tiniest, read_bytes=False)
            assert len(problems) == 1, (path, problems)
            assert str(tiniest.path) in problems[0]
            if path.name not in TOP:
                assert f"{path} " in problems[0]


def test_structure_alone_reads_no_numbers(tiniest, files):
    for path in files:
        if "c" in path.parts[path.parts.index("c") + 1 :]:
            with flipped(path, 0):
                assert problems_of(tiniest, read_bytes=False) == []
                assert len(problems_of(tiniest, read_bytes=True)) == 1


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long"])
def test_an_object_of_another_size_is_rejected_on_open(small, damage):
    for path in small.objects():
        data = path.read_bytes()
        changed = {"missing": None, "empty": b"", "short": data[:-1], "long": data + b"\0"}
        with (
            replaced(path, changed[damage]),
            pytest.raises(PipelineError, match=rf"{path} (is missing|has [\d,]+ bytes)"),
        ):
            TeacherCache.open(small.path)
    assert small.matches(TeacherCache.open(small.path))


def test_shards_of_equal_size_are_not_taken_for_each_other(tmp_path):
    small = SmallCache(tmp_path / "cache", num_samples=8, codec="none")
    cache = small.write()
    shards = sorted(small.path.glob("data.zarr/logits/c/*/*/*"))
    assert len({path.stat().st_size for path in shards}) == 1
    assert len(shards) == 4
    for first in shards:
        for second in shards:
            if first == second:
                continue
            mine, other = first.read_bytes(), second.read_bytes()
            with replaced(first, other):
                assert [str(first) in line for line in problems_of(small)] == [True]
                assert isinstance(read_or_refusal(lambda: small.matches(cache)), str)
                with replaced(second, mine):
                    assert len(problems_of(small)) == 2
                    assert isinstance(read_or_refusal(lambda: small.matches(cache)), str)
    assert small.matches(cache)


def test_an_object_that_vanishes_after_opening_is_reported(small):
    cache = TeacherCache.open(small.path)
    for path in small.objects():
        with replaced(path, None):
            line = read_or_refusal(lambda: small.read(cache, names_of(path)))  # noqa: B023
            assert str(line).startswith(f"{path} is missing")


def test_an_unknown_file_is_listed_and_harmless(small):
    unknown = ["data.zarr/logits/c/9/9/9", "notes.txt", "receipts/logits/9.9.json", "x/y"]
    for key in unknown:
        (small.path / key).parent.mkdir(parents=True, exist_ok=True)
        (small.path / key).write_bytes(b"anything")
    checked = check_cache(small.store, read_bytes=True)
    assert (checked.problems, checked.unknown) == ([], unknown)
    assert small.matches(TeacherCache.open(small.path))


@pytest.mark.parametrize("name", [LOGITS, FEATURES])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected_even_if_they_were_sealed(small, name, value):
    cache, values = TeacherCache.open(small.path), small.arrays[name].copy()
    values[1, 5, 1] = value
    data = encode(cache.reader.specs[name], values[1, 4:])
    (small.path / f"data.zarr/{name}/c/1/1/0").write_bytes(data)
    key = f"receipts/{name}/1.1.json"
    facts = cache.seal.receipts[key].model_copy(
        update={"bytes": len(data), "sha256": digest_of(data)}
    )
    reseal(small.path, receipts=cache.seal.receipts | {key: facts})
    forged = TeacherCache.open(small.path)
    read = forged.logits if name == LOGITS else forged.features
    assert np.array_equal(read(0), small.arrays[name][0])
    with pytest.raises(ArtefactMismatch, match=f"contains NaN or infinity in {name} of view 1"):
        read(1)


# The manifest


EDITS: dict[str, Callable[[dict], None]] = {
    "precision": lambda content: content["identity"].update(precision="bf16"),
    "weights": lambda content: content["identity"].update(weights="e" * 64),
    "classes": lambda content: content["shape"].update(num_classes=4),
    "samples": lambda content: content["shape"].update(num_samples=8),
    "views": lambda content: content["shape"].update(num_views=1),
    "shards": lambda content: content["layout"].update(shard_rows=7),
    "codec": lambda content: content["layout"].update(codec="none"),
    "id": lambda content: content.update(id="f" * 64),
    "version": lambda content: content.update(version=3),
    "format": lambda content: content.update(format="other"),
    "more": lambda content: content.update(more=1),
    "less": lambda content: content.pop("layout"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_rejected(small, edit):
    (small.path / "manifest.json").write_bytes(edited(small.path, EDITS[edit]))
    with pytest.raises(ArtefactMismatch, match=r"manifest.json differs from the sealed one"):
        TeacherCache.open(small.path)


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_that_was_edited_together_with_the_seal_is_rejected(small, edit):
    reseal(small.path, manifest=edited(small.path, EDITS[edit]))
    line = read_or_refusal(lambda: TeacherCache.open(small.path))
    assert isinstance(line, str)
    by_id = edit in ("precision", "weights", "id")
    assert ("has an id that does not match its manifest" in line) == by_id
    assert problems_of(small)


def test_a_seal_of_other_receipts_is_rejected(small):
    seal = Seal.model_validate_json((small.path / "sealed.json").read_bytes())
    receipts = dict(seal.receipts)
    facts = receipts.pop("receipts/features/1.1.json")
    reseal(small.path, receipts=receipts)
    with pytest.raises(ArtefactMismatch, match=r"sealed with 12 receipts \(expected the 13"):
        TeacherCache.open(small.path)
    reseal(small.path, receipts=receipts | {"receipts/features/1.2.json": facts})
    with pytest.raises(ArtefactMismatch, match="sealed with 13 receipts"):
        TeacherCache.open(small.path)


def test_a_record_in_another_text_is_rejected(small):
    for path in sorted(small.path.rglob("*.json")):
        data = path.read_bytes()
        with replaced(path, json.dumps(json.loads(data)).encode()):
            assert problems_of(small), path


# The summary


def plain_summary(logits, labels, held_out):
    """Accuracies, wrong rows and agreement, by their definitions; V views of N rows of floats."""
    clean = [row.index(max(row)) for row in logits[0]]
    training, apart, agreement, wrong = [], [], [], 0
    for view, rows in enumerate(logits):
        right = [row[label] == max(row) for row, label in zip(rows, labels, strict=True)]
        held = [right[i] for i in held_out]
        trained = [right[i] for i in range(len(rows)) if i not in set(held_out)]
        training.append(sum(trained) / len(trained))
        apart += [sum(held) / len(held)] if held else []
        top = [row.index(max(row)) for row in rows]
        agreement.append(sum(a == b for a, b in zip(top, clean, strict=True)) / len(rows))
        wrong += right.count(False) if view == 0 else 0
    return training, apart, agreement, wrong


@pytest.mark.parametrize("held_out", [[], [6], [0, 3, 4, 11]], ids=len)
@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_the_summary_is_that_of_a_plain_loop_and_ties_are_right(tmp_path, held_out, top_k):
    draws = np.random.default_rng(5)
    logits = draws.integers(-2, 3, (3, 13, 4)).astype(np.float16)  # full of ties
    small = SmallCache(
        tmp_path / "cache",
        num_views=3,
        num_samples=13,
        num_classes=4,
        shard_rows=5,
        logits=logits,
        top_k=top_k,
    )
    writer, labels = small.begin(), small.contents.labels
    for number, unit in enumerate(writer.units):
        measured = [
            Fidelity(temperature=tau, mean_kl=number * tau, max_kl=10.0 * number) for tau in TAUS
        ]
        note = Note(
            device=f"device {number % 2}", seconds=0.5, fidelity=measured, head_error=0.1 * number
        )
        writer.write(unit, small.unit(writer, unit), note)
    summary = summarise_cache(
        writer,
        labels=labels,
        held_out=np.array(held_out, dtype=np.int64),
        target_in_sample=True,
        description="a teacher",
    )
    training, apart, agreement, wrong = plain_summary(logits.tolist(), labels.tolist(), held_out)
    assert summary.accuracy_training == pytest.approx(training)
    assert summary.accuracy_held_out == pytest.approx(apart)
    assert summary.agreement == pytest.approx(agreement)
    assert (summary.num_wrong, agreement[0]) == (wrong, 1.0)
    assert 0 < wrong < 13
    assert min(agreement) < 1
    assert summary.fidelity == [
        Fidelity(temperature=tau, mean_kl=4.0 * tau, max_kl=80.0) for tau in TAUS
    ]
    assert (summary.head_error, summary.seconds) == (pytest.approx(0.8), 4.5)
    assert summary.devices == ["device 0", "device 1"]
    assert (summary.target_in_sample, summary.teacher) == (True, "a teacher")


def test_a_summary_reads_no_damaged_logits(tmp_path):
    small = SmallCache(tmp_path / "cache")
    writer = small.filled()
    with (
        flipped(small.path / "data.zarr/logits/c/1/1/0", 3),
        pytest.raises(ArtefactMismatch, match="has other contents than were written"),
    ):
        summarise_cache(
            writer,
            labels=small.contents.labels,
            held_out=np.zeros(0, dtype=np.int64),
            target_in_sample=False,
            description="",
        )


@pytest.mark.parametrize("temperature", TAUS)
def test_fidelity_is_the_divergence_of_the_stored_from_the_exact(temperature):
    draws = np.random.default_rng(6)
    exact = (6 * draws.normal(size=(9, 5))).astype(np.float32)
    stored = (exact + 0.3 * draws.normal(size=exact.shape)).astype(np.float16)
    expected = []
    for row, kept in zip(exact.astype(float), stored.astype(float), strict=True):
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (row, kept))
        expected.append(sum(p * np.log(p / q)))
    found = storage_fidelity(
        torch.from_numpy(exact), torch.from_numpy(stored), temperature=temperature
    )
    assert found.temperature == temperature
    assert found.mean_kl == pytest.approx(np.mean(expected), rel=1e-9)
    assert found.max_kl == pytest.approx(max(expected), rel=1e-9)


# The pass of the teacher


def test_batch_size_and_workers_change_neither_id_nor_numbers(digits, tmp_path):
    reference = Caches(config=digits, dataset=Dataset.open(digits.data_folder)).training
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("caches",))
    changes = [f"workspace={workspace}", "cache_teacher.batch_size=37", "cache_teacher.workers=2"]
    again = cache_teacher.execute(with_overrides(digits, changes))
    assert (again.id, Path(again.path).name) == (reference.id, Path(reference.path).name)
    assert again.path != reference.path
    for view in range(reference.shape.num_views):
        first, second = reference.logits(view), again.logits(view)
        ulp = np.spacing(np.abs(first)).astype(np.float32)  # float32 sums may round another way
        assert (np.abs(first.astype(np.float32) - second.astype(np.float32)) <= ulp).all()
        assert (first == second).mean() > 0.99


def test_the_head_of_the_stored_features_gives_the_logits_at_float16_rounding(digits):
    cache = Caches(config=digits, dataset=Dataset.open(digits.data_folder)).training
    weight, bias = cache.head
    for view in range(cache.shape.num_views):
        features, logits = cache.features(view), cache.logits(view).astype(np.float64)
        again = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
        half_ulp = 0.5 * np.spacing(np.abs(features)).astype(np.float64)
        bound = half_ulp @ np.abs(weight.T) + 0.5 * np.spacing(np.abs(cache.logits(view)))
        assert (np.abs(again - logits) <= bound + 1e-4).all()


def test_the_summary_of_a_real_cache_is_that_of_its_numbers(digits):
    dataset = Dataset.open(digits.data_folder)
    cache = Caches(config=digits, dataset=dataset).training
    views = [cache.logits(view).astype(float).tolist() for view in range(cache.shape.num_views)]
    training, apart, agreement, wrong = plain_summary(
        views, cache.labels.tolist(), dataset.held_out.tolist()
    )
    assert cache.summary.accuracy_training == pytest.approx(training)
    assert cache.summary.accuracy_held_out == pytest.approx(apart)
    assert cache.summary.agreement == pytest.approx(agreement)
    assert cache.summary.num_wrong == wrong
    assert np.array_equal(cache.labels, dataset.train.samples.labels)
    assert np.array_equal(cache.keys, dataset.train.samples.keys)
    assert np.array_equal(cache.pixels, dataset.train.samples.pixels)


def teacher_pass(dataset: Dataset, path: Path, *, bias: float = 0.0, **settings) -> TeacherCache:
    """The cache of an untrained teacher over the test images."""
    torch.manual_seed(0)
    model = build("resnet8a", num_classes=dataset.num_classes).eval().requires_grad_(False)
    model.head.bias.add_(bias)
    teacher = Teacher(
        model=model,
        digest="a" * 64,
        mean=dataset.record.mean,
        std=dataset.record.std,
        target_in_sample=False,
        description="untrained",
    )
    runtime, views = resolve_runtime("fp32"), ViewSpec()
    planned = TeacherPass(
        teacher=teacher,
        loader=BatchLoader(dataset.eval, batch_size=3),
        beton=dataset.eval,
        views=views,
        runtime=runtime,
        held_out=np.zeros(0, dtype=np.int64),
    )
    kept = KeptOutputs(**settings)
    left = cache_views(
        LocalObjects(path),
        planned,
        identity=cache_identity(
            teacher, beton=dataset.eval, views=views, runtime=runtime, kept=kept
        ),
        layout=CacheLayout(shard_rows=4),
    )
    assert left == 0
    return TeacherCache.open(path)


def test_features_that_were_not_kept_are_asked_for_in_one_line(prepared, tmp_path):
    cache = teacher_pass(prepared, tmp_path / "cache", features=False)
    assert cache.logits(0).shape == (prepared.eval.num_samples, prepared.num_classes)
    with pytest.raises(PipelineError, match=r"has no features.*cache_teacher.features = true"):
        cache.features(0)


def test_a_top_k_pass_keeps_what_a_dense_pass_gives(prepared, tmp_path):
    dense = teacher_pass(prepared, tmp_path / "dense", features=True)
    settings = {"features": True, "top_k": 2, "temperatures": TAUS}
    sparse = teacher_pass(prepared, tmp_path / "sparse", **settings)
    assert dense.id != sparse.id
    assert np.array_equal(dense.features(0), sparse.features(0))
    expected = top_k_of(dense.logits(0)[None], dense.labels, 2)
    for name in (TOP_CLASS, TOP_LOGIT, TARGET_LOGIT):
        assert np.array_equal(np.concatenate(list(sparse.blocks(name, 0))), expected[name][0])
    np.testing.assert_allclose(
        np.concatenate(list(sparse.blocks(LOGSUMEXP, 0))), expected[LOGSUMEXP][0], rtol=1e-6
    )


def test_logits_that_float16_cannot_hold_stop_the_pass(prepared, tmp_path):
    with pytest.raises(PipelineError, match=r"logits of sample 0 in view 0 reach .*65504"):
        teacher_pass(prepared, tmp_path / "cache", bias=1e6, features=True)
    with pytest.raises(NotSealed):
        TeacherCache.open(tmp_path / "cache")


def test_a_cache_of_many_images_has_few_files():
    """ImageNet with four views: hundreds of objects, and not one for each of a million images."""
    shape = CacheShape(num_views=5, num_samples=1_281_167, num_classes=1000, num_features=2048)
    identity = identity_of()
    manifest = CacheManifest(
        id=identity.id,
        identity=identity,
        shape=shape,
        layout=CacheLayout(shard_rows=default_shard_rows(2 * 2048)),
    )
    sizes = [spec.object_bytes for spec in view_arrays(manifest)]
    assert len(object_names(manifest)) == 5 * 79 * 2 + 5
    assert max(sizes) <= 64 << 20
