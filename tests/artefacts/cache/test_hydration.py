"""A cache in the order of a data set: every row is the cache's own, and a local copy is trusted
only as far as its bytes."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artefacts.cache.arrays import LOGITS
from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.dataset import Samples
from pipeline.errors import ArtefactMismatch, Damaged
from pipeline.methods.sparse_logits import reconstruct, summarise
from pipeline.provenance import file_sha256
from tests.support.cases import mentions
from tests.support.small_caches import made_up, sealed_cache, some_samples
from tests.support.workspaces import (
    edited,
    flip_byte,
    read_or_refusal,
    replace_bytes,
    snapshot,
    unfinished,
)

COUNT, NUM_CLASSES, NUM_VIEWS, TOP_K = 40, 6, 3, 2
TAUS = (1.0, 4.0)

ORDERS = {
    "its own": np.arange(COUNT),
    "the first": np.arange(23),
    "reversed": np.arange(COUNT)[::-1].copy(),
    "permuted": np.random.default_rng(0).permutation(COUNT),
    "some": np.array([31, 2, 2, 17, 39, 0]),
    "with extras": np.array([-1, 5, 4, -1, -1, 38, 20, 21, -1]),
    "more than there are": np.concatenate([np.arange(COUNT), [-1, -1, 3]]),
}


@pytest.fixture(scope="module")
def samples() -> Samples:
    return some_samples(COUNT, num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def dense_cache(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hydration") / "dense"
    return sealed_cache(folder, samples, num_views=NUM_VIEWS, num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def sparse_cache(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hydration") / "sparse"
    settings = {"num_views": NUM_VIEWS, "num_classes": NUM_CLASSES, "top_k": TOP_K, "taus": TAUS}
    return sealed_cache(folder, samples, **settings)


def wanted_samples(samples: Samples, order) -> Samples:
    """The samples at ``order``; others at -1."""
    wanted = samples.rows(np.maximum(order, 0))
    others, is_other = some_samples(len(order), seed=9), order < 0
    values = {name: getattr(wanted, name).copy() for name in ("keys", "labels", "pixels")}
    for name, value in values.items():
        value[is_other] = getattr(others, name)[is_other]
    return Samples(**values)


def hydrated(cache, samples, order, folder) -> HydratedCache:
    joined = join_samples(cache, wanted_samples(samples, order), place="train.beton")
    return HydratedCache(cache=cache, joined=joined, folder=folder)


def gathered(rows: np.ndarray, order) -> np.ndarray:
    """Plain indexing; NaN where there is no row."""
    return np.where((order >= 0)[:, None], rows[np.maximum(order, 0)], np.nan).astype(rows.dtype)


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.npy"))


@pytest.fixture(params=ORDERS)
def order(request) -> np.ndarray:
    return ORDERS[request.param]


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_rows_are_those_of_plain_indexing(dense_cache, samples, order, view, tmp_path):
    cached = hydrated(dense_cache, samples, order, tmp_path)
    logits = cached.logits(view, temperature=3.0)
    assert (logits.dtype, cached.num_samples) == (torch.float16, len(order))
    np.testing.assert_array_equal(logits.numpy(), gathered(dense_cache.logits(view), order))
    features = cached.features(view)
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, gathered(dense_cache.features(view), order))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_blocks_are_the_whole_in_order(dense_cache, sparse_cache, samples, order, kind, tmp_path):
    cache = {"dense": dense_cache, "sparse": sparse_cache}[kind]
    cached = hydrated(cache, samples, order, tmp_path)
    for view in range(NUM_VIEWS):
        blocks = list(cached.logit_blocks(view, temperature=4.0))
        stops = [0, *(block.samples.stop for block in blocks)]
        assert [block.samples.start for block in blocks] == stops[:-1]
        assert stops[-1] == len(order)
        assert all(
            len(block.logits) == block.samples.stop - block.samples.start for block in blocks
        )
        assert max(len(block.logits) for block in blocks) <= cache.manifest.layout.shard_rows
        joined = torch.cat([block.logits for block in blocks])
        np.testing.assert_array_equal(joined, cached.logits(view, temperature=4.0))
        assert all((block.classes is None) == (kind == "dense") for block in blocks)


@pytest.mark.parametrize("tau", TAUS)
def test_top_k_rows_are_reconstructed_from_their_own_summary(
    sparse_cache, samples, order, tau, tmp_path
):
    """Against the dense logits that were summarised, row by row."""
    dense = made_up(samples, num_views=NUM_VIEWS, num_classes=NUM_CLASSES, top_k=0, taus=TAUS)
    cached = hydrated(sparse_cache, samples, order, tmp_path)
    for view in range(NUM_VIEWS):
        logits = cached.logits(view, temperature=tau)
        assert logits.dtype == torch.float32
        classes = torch.cat([b.classes for b in cached.logit_blocks(view, temperature=tau)])
        for i, row in enumerate(order.tolist()):
            if row < 0:
                assert logits[i].isnan().all()
                continue
            label = torch.from_numpy(samples.labels[[row]])
            source = torch.from_numpy(dense[LOGITS][view][[row]])
            kept = summarise(source, label, top_k=TOP_K, temperatures=TAUS)
            expected = reconstruct(kept, label, num_classes=NUM_CLASSES, temperature=tau)
            assert torch.equal(logits[[i]], expected)
            assert torch.equal(classes[[i]], kept.classes)


def test_a_temperature_that_was_not_kept_is_rejected_and_those_kept_are_named(
    sparse_cache, dense_cache, samples, tmp_path
):
    cached = hydrated(sparse_cache, samples, ORDERS["permuted"], tmp_path)
    for read in (cached.logits, lambda *a, **k: next(cached.logit_blocks(*a, **k))):
        with pytest.raises(ArtefactMismatch) as caught:
            read(0, temperature=2.0)
        assert mentions(str(caught.value), "temperature", "1 and 4", 2)
        assert "\n" not in str(caught.value)
    assert copies(tmp_path) == [], "refused before anything is copied"
    every = hydrated(dense_cache, samples, ORDERS["permuted"], tmp_path)
    assert every.logits(0, temperature=2.0).shape == (COUNT, NUM_CLASSES)


@pytest.mark.parametrize("name", ["its own", "the first"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_blocks_in_the_caches_own_order_write_nothing(
    dense_cache, sparse_cache, samples, kind, name, tmp_path
):
    cache = {"dense": dense_cache, "sparse": sparse_cache}[kind]
    cached = hydrated(cache, samples, ORDERS[name], tmp_path)
    for view in range(NUM_VIEWS):
        list(cached.logit_blocks(view, temperature=1.0))
    assert list(tmp_path.iterdir()) == []
    list(hydrated(cache, samples, ORDERS["permuted"], tmp_path).logit_blocks(0, temperature=1.0))
    assert copies(tmp_path), "or else nothing would ever be seen here"


@settings(max_examples=25)
@given(
    order=st.lists(st.integers(-1, COUNT - 1), min_size=1, max_size=60).filter(
        lambda rows: max(rows) >= 0
    )
)
def test_any_order_is_plain_indexing(dense_cache, samples, order, tmp_path_factory):
    order = np.array(order)
    cached = hydrated(dense_cache, samples, order, tmp_path_factory.mktemp("any"))
    np.testing.assert_array_equal(cached.features(1), gathered(dense_cache.features(1), order))
    blocks = list(cached.logit_blocks(2, temperature=1.0))
    joined = torch.cat([block.logits for block in blocks])
    np.testing.assert_array_equal(joined, gathered(dense_cache.logits(2), order))


@pytest.fixture
def permuted(dense_cache, samples, tmp_path) -> HydratedCache:
    return hydrated(dense_cache, samples, ORDERS["permuted"], tmp_path)


def expected_features(cached) -> np.ndarray:
    return gathered(cached.cache.features(0), ORDERS["permuted"])


def the_copy(folder: Path) -> Path:
    return next(folder.rglob("features.0.*npy"))


def cut(path):
    replace_bytes(path, path.read_bytes()[:-3])


def lengthen(path):
    replace_bytes(path, path.read_bytes() + b"\0\0")


def other_view(path):
    """The bytes of another copy, with its description."""
    other = next(path.parent.glob("features.1.*npy"))
    replace_bytes(path, other.read_bytes())
    replace_bytes(path.with_suffix(".json"), other.with_suffix(".json").read_bytes())


def redescribe(path, **changes):
    """Other bytes with a description that fits them but for ``changes``."""
    flip_byte(path, -1)
    described = path.with_suffix(".json")
    with edited(described) as record:
        record |= {"sha256": file_sha256(path), **changes}


def torn_description(path):
    flip_byte(path, -1)
    described = path.with_suffix(".json")
    replace_bytes(described, described.read_bytes()[:20])


def no_description(path):
    flip_byte(path, -1)
    path.with_suffix(".json").unlink()


DAMAGES = {
    "first byte": lambda path: flip_byte(path, 0),
    "a number": lambda path: flip_byte(path, 200),
    "last byte": lambda path: flip_byte(path, -1),
    "truncated": cut,
    "longer": lengthen,
    "empty": lambda path: replace_bytes(path, b""),
    "gone": Path.unlink,
    "another view": other_view,
    "another cache": lambda path: redescribe(path, root="b" * 64),
    "another order": lambda path: redescribe(path, rows="b" * 64),
    "torn description": torn_description,
    "no description": no_description,
}


def reopened(cached: HydratedCache) -> HydratedCache:
    """The same cache, as another process sees it."""
    return HydratedCache(cache=cached.cache, joined=cached.joined, folder=cached.folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_was_changed_is_recomputed(permuted, damage):
    permuted.features(0)
    permuted.features(1)
    path = the_copy(permuted.folder)
    content = path.read_bytes()
    DAMAGES[damage](path)
    again = reopened(permuted)
    np.testing.assert_array_equal(again.features(0), expected_features(again))
    assert path.read_bytes() == content
    assert unfinished(permuted.folder) == []


def test_a_whole_copy_is_used_unchanged(permuted):
    permuted.features(0)
    before = snapshot(permuted.folder)
    reopened(permuted).features(0)
    assert snapshot(permuted.folder) == before


def test_a_copy_serves_when_the_cache_is_gone(samples, tmp_path):
    """So no step gathers rows from shards."""
    folder = tmp_path / "cache"
    cache = sealed_cache(folder, samples, num_views=2, num_classes=NUM_CLASSES)
    cached = hydrated(cache, samples, ORDERS["permuted"], tmp_path / "local")
    features, logits = cached.features(0).copy(), cached.logits(1, temperature=1.0).clone()
    shutil.rmtree(folder / "data.zarr" / "features")
    shutil.rmtree(folder / "data.zarr" / "logits")
    np.testing.assert_array_equal(cached.features(0), features)
    assert torch.equal(cached.logits(1, temperature=1.0), logits)
    with pytest.raises(Damaged, match="is missing"):
        cached.features(1)
    assert unfinished(tmp_path) == []


def mapped_file(address: int) -> str:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _ = line.split(maxsplit=1)
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[-1]
    return ""


@pytest.mark.parametrize("name", ["its own", "permuted", "with extras"])
def test_a_copy_is_mapped_and_not_read_into_memory(dense_cache, samples, name, tmp_path):
    cached = hydrated(dense_cache, samples, ORDERS[name], tmp_path)
    features, logits = cached.features(0), cached.logits(0, temperature=1.0)
    assert mapped_file(features.ctypes.data).startswith(str(tmp_path))
    assert mapped_file(logits.data_ptr()).startswith(str(tmp_path))
    assert mapped_file(features.ctypes.data).endswith(".npy")
    memory = np.zeros(4)
    assert not mapped_file(memory.ctypes.data).endswith(".npy")


def test_writing_into_a_mapped_copy_does_not_reach_the_file(permuted):
    features = permuted.features(0)
    features[:] = 7
    again = reopened(permuted)
    np.testing.assert_array_equal(again.features(0), expected_features(again))


def test_a_part_and_the_whole_in_the_same_order_do_not_take_each_others_copy(
    dense_cache, samples, tmp_path
):
    """Although both are the cache's own order; nor does one replace the other's."""
    for name in ("the first", "its own", "the first"):
        cached = hydrated(dense_cache, samples, ORDERS[name], tmp_path)
        expected = dense_cache.features(0)[ORDERS[name]]
        before = snapshot(tmp_path)
        np.testing.assert_array_equal(cached.features(0), expected)
        assert before.items() <= snapshot(tmp_path).items()
    assert len(copies(tmp_path)) == 2


def test_copies_of_another_cache_are_not_taken(tmp_path):
    for number in range(2):
        own = some_samples(COUNT, seed=number)
        cache = sealed_cache(tmp_path / f"cache{number}", own)
        cached = hydrated(cache, own, ORDERS["permuted"], tmp_path / "local")
        expected = gathered(cache.features(0), ORDERS["permuted"])
        np.testing.assert_array_equal(cached.features(0), expected)
    assert len(copies(tmp_path / "local")) == 2


def read_copy(cached, barrier, failures):
    barrier.wait()
    for view in range(NUM_VIEWS):
        expected = gathered(cached.cache.features(view), ORDERS["permuted"])
        if not np.array_equal(cached.features(view), expected):
            failures.put(view)


def test_processes_that_copy_at_once_all_read_right_rows(dense_cache, samples, tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        cached = hydrated(dense_cache, samples, ORDERS["permuted"], tmp_path / str(attempt))
        barrier, failures = context.Barrier(3), context.Queue()
        processes = [
            context.Process(target=read_copy, args=(cached, barrier, failures)) for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert failures.empty()
        assert unfinished(tmp_path) == []
        assert len(copies(tmp_path / str(attempt))) == NUM_VIEWS
        before = snapshot(tmp_path)
        np.testing.assert_array_equal(cached.features(0), expected_features(cached))
        assert snapshot(tmp_path) == before, "what three left is whole"


def copy_and_report(cached, barrier, written):
    barrier.wait()
    write = HydratedCache._write

    def counted(self, path, name, view):
        written.put(view)
        write(self, path, name, view)

    HydratedCache._write = counted
    cached.features(0)


def test_of_processes_that_need_a_copy_at_once_one_makes_it(dense_cache, samples, tmp_path):
    context = multiprocessing.get_context("fork")
    cached = hydrated(dense_cache, samples, ORDERS["permuted"], tmp_path)
    barrier, written = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=copy_and_report, args=(cached, barrier, written)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert written.get(timeout=10) == 0
    assert written.empty()


def test_a_damaged_object_is_rejected_and_no_copy_is_left(samples, tmp_path):
    folder = tmp_path / "cache"
    cache = sealed_cache(folder, samples, num_classes=NUM_CLASSES)
    key = next(key for key, _ in cache.objects() if "/features/" in key)
    flip_byte(folder / key, -1)
    for name in ("its own", "permuted"):
        cached = hydrated(cache, samples, ORDERS[name], tmp_path / "local")
        line = read_or_refusal(lambda cached=cached: cached.features(0))
        assert isinstance(line, str)
        assert key in line
        assert copies(tmp_path) == []
        assert unfinished(tmp_path) == []
