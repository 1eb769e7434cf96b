"""The teacher cache: complete or absent, what was written or refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.artefacts.cache_record import CacheIdentity, CacheShape, CacheSummary
from pipeline.artefacts.cache_writer import SHARD_ROWS, CacheContents, create
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.data.loaders import BatchLoader
from pipeline.errors import ArtefactNotFound, PipelineError
from pipeline.models.zoo import build
from pipeline.runtime import resolve_runtime
from pipeline.teacher_pass import Teacher, cache_identity, cache_views
from stages import cache_teacher
from stages.config_file import with_overrides
from stages.requests import find_cache, view_spec
from tests.workspaces import flipped, linked_copy, read_or_refusal, unfinished

NUM_VIEWS, NUM_SAMPLES, NUM_CLASSES, NUM_FEATURES = 2, 11, 3, 2


def identity_of(**changes) -> CacheIdentity:
    fields = {
        "weights": "a" * 64,
        "arch": "resnet8a",
        "fingerprint": "b" * 64,
        "pixel_digest": "c" * 64,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "views": {"padding": 4, "flip": True, "count": 1, "seed": 0},
        "precision": "fp32",
        "features": True,
    }
    return CacheIdentity.model_validate(fields | changes)


def summary_of(num_views: int) -> CacheSummary:
    return CacheSummary(
        accuracy_training=[0.5] * num_views,
        accuracy_held_out=[],
        num_wrong=3,
        agreement=[1.0] * num_views,
        fidelity=[],
        head_error=0.0,
        target_in_sample=False,
        teacher="a teacher",
        seconds=1.0,
        device="none",
        versions={},
    )


def numbers(num_views: int, num_samples: int, width: int, *, seed: int):
    values = np.random.default_rng(seed).normal(size=(num_views, num_samples, width))
    return (5 * values).astype(np.float32)


class Written:
    """A cache of synthetic numbers, and the numbers."""

    def __init__(self, path: Path, *, num_views=NUM_VIEWS, num_samples=NUM_SAMPLES, step=4) -> None:
        self.path = path
        self.step = step
        self.logits = numbers(num_views, num_samples, NUM_CLASSES, seed=1)
        self.features = numbers(num_views, num_samples, NUM_FEATURES, seed=2)
        draws = np.random.default_rng(3)
        self.contents = CacheContents(
            labels=draws.integers(0, NUM_CLASSES, num_samples),
            keys=draws.integers(0, 256, (num_samples, 16), dtype=np.uint8),
            head_weight=draws.normal(size=(NUM_CLASSES, NUM_FEATURES)).astype(np.float32),
            head_bias=draws.normal(size=NUM_CLASSES).astype(np.float32),
        )
        self.shape = CacheShape(
            num_views=num_views,
            num_samples=num_samples,
            num_classes=NUM_CLASSES,
            num_features=NUM_FEATURES,
        )

    def write(self, *, interrupt_after: int | None = None) -> TeacherCache:
        num_appended = 0
        with create(
            self.path, identity=identity_of(), shape=self.shape, contents=self.contents
        ) as unsealed:
            for view in range(self.shape.num_views):
                for start in range(0, self.shape.num_samples, self.step):
                    if num_appended == interrupt_after:
                        raise KeyboardInterrupt
                    rows = slice(start, start + self.step)
                    unsealed.writer.append(self.logits[view, rows], self.features[view, rows])
                    num_appended += 1
                unsealed.writer.end_view()
            if num_appended == interrupt_after:
                raise KeyboardInterrupt
            unsealed.seal(summary_of(self.shape.num_views))
        return TeacherCache.open(self.path)

    def matches(self, cache: TeacherCache) -> bool:
        """Whether every array reads as it was written."""
        weight, bias = cache.head
        return (
            all(
                np.array_equal(cache.logits(view), self.logits[view].astype(np.float16))
                and np.array_equal(cache.features(view), self.features[view].astype(np.float16))
                for view in range(self.shape.num_views)
            )
            and np.array_equal(cache.labels, self.contents.labels)
            and np.array_equal(cache.keys, self.contents.keys)
            and np.array_equal(weight, self.contents.head_weight)
            and np.array_equal(bias, self.contents.head_bias)
        )


@pytest.fixture
def written(tmp_path: Path) -> Written:
    result = Written(tmp_path / "cache")
    result.write()
    return result


def stored_objects(path: Path) -> list[Path]:
    return sorted(p for p in (path / "data.zarr").rglob("*") if p.is_file() and "c" in p.parts)


def test_what_is_read_is_what_was_written(written):
    cache = TeacherCache.open(written.path)
    assert written.matches(cache)
    assert (cache.logits(0).dtype, cache.features(0).dtype) == (np.float16, np.float16)
    assert (cache.labels.dtype, cache.keys.dtype, cache.head[0].dtype) == (
        np.int64,
        np.uint8,
        np.float32,
    )
    assert (cache.shape, cache.summary) == (written.shape, summary_of(NUM_VIEWS))


def test_many_shards_in_odd_appends_are_what_was_written(tmp_path):
    written = Written(tmp_path / "cache", num_samples=2 * SHARD_ROWS + 77, step=4099)
    assert written.matches(written.write())
    assert len(list(written.path.glob("receipts/logits/*.json"))) == 3 * NUM_VIEWS


def test_one_append_may_span_shards(tmp_path):
    size = 2 * SHARD_ROWS + 5
    written = Written(tmp_path / "cache", num_views=1, num_samples=size, step=size)
    assert written.matches(written.write())


def test_any_zarr_reader_opens_the_data(written):
    group = zarr.open_group(written.path / "data.zarr", mode="r")
    assert np.array_equal(group["logits"][:], written.logits.astype(np.float16))
    assert np.array_equal(group["features"][1, 3:5], written.features[1, 3:5].astype(np.float16))
    assert np.array_equal(group["labels"][:], written.contents.labels)
    assert group.attrs["heartcut"]["id"] == identity_of().id


@pytest.mark.parametrize("num_appended", range(7))
def test_an_interrupted_cache_leaves_nothing_and_the_next_one_succeeds(tmp_path, num_appended):
    written = Written(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        written.write(interrupt_after=num_appended)
    assert not list(tmp_path.iterdir())
    assert written.matches(written.write())


def test_a_killed_pass_leaves_no_cache_and_the_next_one_succeeds(digits, tiny_toml, tmp_path):
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("caches",))
    caches = workspace / "caches"
    options = ["views.count=all", "cache_teacher.batch_size=16", f"workspace={workspace}"]
    command = [sys.executable, "-m", "cli", "-q", "cache-teacher", str(tiny_toml)]
    command += [part for option in options for part in ("--set", option)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        while not list(caches.glob("*.partial/receipts/logits/1.0.json")):
            assert process.poll() is None, "the pass ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert [path.suffix for path in caches.iterdir()] == [".partial"]
    cache = cache_teacher.execute(with_overrides(digits, [*options, "cache_teacher.batch_size=64"]))
    assert cache.shape.num_views == 10
    assert not unfinished(workspace)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "d" * 64},
        {"arch": "resnet20a"},
        {"fingerprint": "d" * 64},
        {"pixel_digest": "d" * 64},
        {"mean": (0.5, 0.5, 0.51)},
        {"std": (0.25, 0.2, 0.25)},
        {"views": {"padding": 4, "flip": True, "count": 1, "seed": 1}},
        {"precision": "bf16"},
        {"features": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_identity_changes_the_id(change):
    assert identity_of(**change).id != identity_of().id
    assert set(change) <= set(CacheIdentity.model_fields)


def test_no_field_of_the_identity_was_forgotten_above():
    assert len(CacheIdentity.model_fields) == 9


def test_the_id_is_the_same_on_any_machine_and_in_any_year():
    assert identity_of().id[:12] == "097304bae082"


def test_batch_size_and_workers_change_neither_id_nor_numbers(digits, tmp_path):
    reference = find_cache(digits, Dataset.open(digits.data_folder))
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("caches",))
    changes = [f"workspace={workspace}", "cache_teacher.batch_size=37", "cache_teacher.workers=2"]
    again = cache_teacher.execute(with_overrides(digits, changes))
    assert (again.id, again.path.name) == (reference.id, reference.path.name)
    for view in range(reference.shape.num_views):
        first, second = reference.logits(view), again.logits(view)
        ulp = np.spacing(np.abs(first)).astype(np.float32)  # float32 sums may round another way
        assert (np.abs(first.astype(np.float32) - second.astype(np.float32)) <= ulp).all()
        assert (first == second).mean() > 0.99


@pytest.mark.parametrize("name", ["logits", "features"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_505.0, -1e30])
def test_what_float16_cannot_hold_is_refused_with_sample_and_view(tmp_path, name, value):
    written = Written(tmp_path / "cache")
    getattr(written, name)[1, 6, 1] = value
    with pytest.raises(PipelineError, match=rf"{name} of sample 6 in view 1 reach .*65504"):
        written.write()
    assert not list(tmp_path.iterdir())


def test_the_largest_float16_is_stored(tmp_path):
    written = Written(tmp_path / "cache")
    written.logits[0, 0, 0] = -65_504.0
    assert written.matches(written.write())


def test_a_flipped_byte_in_any_number_is_refused_or_harmless(written):
    num_refused = 0
    for path in stored_objects(written.path):
        name = path.relative_to(written.path / "data.zarr").parts[0]
        cache = TeacherCache.open(written.path)
        for offset in range(path.stat().st_size):
            with flipped(path, offset):
                right = read_or_refusal(lambda: reads_right(cache, written, name))  # noqa: B023
            assert right, (path, offset)
            num_refused += isinstance(right, str)
    assert num_refused > 500


def reads_right(cache: TeacherCache, written: Written, name: str) -> bool:
    """Whether one array reads as it was written, in every view."""
    if name == "labels":
        return np.array_equal(cache.labels, written.contents.labels)
    if name == "keys":
        return np.array_equal(cache.keys, written.contents.keys)
    if name.startswith("head"):
        weight, bias = cache.head
        contents = written.contents
        return np.array_equal(weight, contents.head_weight) and np.array_equal(
            bias, contents.head_bias
        )
    read = cache.logits if name == "logits" else cache.features
    expected = (written.logits if name == "logits" else written.features).astype(np.float16)
    return all(np.array_equal(read(view), expected[view]) for view in range(NUM_VIEWS))


def test_a_changed_bit_in_any_record_is_refused_or_harmless(written):
    reference = TeacherCache.open(written.path)
    num_refused = 0
    for path in sorted(written.path.rglob("*.json")):
        for offset in range(0, path.stat().st_size, 5):
            with flipped(path, offset, mask=1 << (offset % 7)):
                cache = read_or_refusal(lambda: TeacherCache.open(written.path))
                if isinstance(cache, str):
                    num_refused += 1
                else:
                    assert cache.manifest == reference.manifest, (path, offset)
                    assert cache.seal == reference.seal, (path, offset)
                    assert written.matches(cache), (path, offset)
    assert num_refused > 500


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long"])
def test_an_object_of_another_size_is_refused_on_open(written, damage):
    for path in stored_objects(written.path):
        data = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "short": data[:-1], "long": data + b"\0"}[damage])
        with pytest.raises(PipelineError, match=rf"{path} (is missing|has [\d,]+ bytes)"):
            TeacherCache.open(written.path)
        path.write_bytes(data)
    assert written.matches(TeacherCache.open(written.path))


def test_an_object_without_a_receipt_was_never_stored(written):
    next(written.path.glob("receipts/features/1.0.json")).unlink()
    with pytest.raises(PipelineError, match="is not what was sealed"):
        TeacherCache.open(written.path)


def test_a_cache_that_was_not_sealed_is_none(written):
    (written.path / "sealed.json").unlink()
    with pytest.raises(ArtefactNotFound, match=r"sealed.json does not exist.*cache-teacher"):
        TeacherCache.open(written.path)


@pytest.mark.parametrize("key", ["identity", "shape", "id", "version", "format"])
def test_an_edited_manifest_is_refused(written, key):
    path = written.path / "manifest.json"
    manifest = json.loads(path.read_text())
    if key == "identity":
        manifest["identity"]["precision"] = "bf16"
    elif key == "shape":
        manifest["shape"]["num_classes"] = 4
    else:
        manifest[key] = {"id": "f" * 64, "version": 2, "format": "other"}[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match=r"sealed|format|id that"):
        TeacherCache.open(written.path)


def test_a_manifest_and_seal_that_were_edited_together_still_have_the_wrong_id(written):
    path = written.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["weights"] = "e" * 64
    path.write_text(json.dumps(manifest))
    from pipeline.artefacts.cache_receipts import write_seal

    (written.path / "sealed.json").unlink()
    write_seal(written.path, summary_of(NUM_VIEWS))
    with pytest.raises(PipelineError, match="has an id that its manifest does not give"):
        TeacherCache.open(written.path)


def test_rows_that_were_never_written_are_refused_by_sample_and_view(tmp_path):
    written = Written(tmp_path / "cache")
    cache = written.write()
    (written.path / "data.zarr/logits/c/1/0/0").unlink()  # after it was opened
    with pytest.raises(PipelineError, match="no number for logits of sample 0 in view 1"):
        cache.logits(1)


def test_features_that_were_not_kept_are_asked_for_in_one_line(digits, tmp_path):
    dataset = Dataset.open(digits.data_folder)
    runtime = resolve_runtime("fp32")
    teacher = Teacher(
        model=build("resnet8a", num_classes=10).eval(),
        digest="a" * 64,
        mean=dataset.record.mean,
        std=dataset.record.std,
        target_in_sample=False,
        description="untrained",
    )
    spec = view_spec(with_overrides(digits, ["views.count=0"]).views)
    identity = cache_identity(
        teacher, beton=dataset.eval, views=spec, runtime=runtime, features=False
    )
    path = tmp_path / "cache"
    cache_views(
        path,
        identity=identity,
        teacher=teacher,
        loader=BatchLoader(dataset.eval, batch_size=256),
        beton=dataset.eval,
        num_views=1,
        runtime=runtime,
        held_out=np.zeros(0, dtype=np.int64),
    )
    cache = TeacherCache.open(path)
    assert cache.logits(0).shape == (dataset.eval.num_samples, 10)
    with pytest.raises(PipelineError, match=r"has no features.*cache_teacher.features = true"):
        cache.features(0)


def test_the_head_of_the_stored_features_gives_the_logits_at_float16_rounding(digits):
    cache = find_cache(digits, Dataset.open(digits.data_folder))
    weight, bias = cache.head
    for view in range(cache.shape.num_views):
        features, logits = cache.features(view), cache.logits(view).astype(np.float64)
        again = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
        half_ulp = 0.5 * np.spacing(np.abs(features)).astype(np.float64)
        bound = half_ulp @ np.abs(weight.T) + 0.5 * np.spacing(np.abs(cache.logits(view)))
        assert (np.abs(again - logits) <= bound + 1e-4).all()


def test_a_copied_cache_is_the_same_cache(written, tmp_path):
    shutil.copytree(written.path, tmp_path / "elsewhere")
    copied, original = TeacherCache.open(tmp_path / "elsewhere"), TeacherCache.open(written.path)
    assert (copied.id, copied.seal) == (original.id, original.seal)
