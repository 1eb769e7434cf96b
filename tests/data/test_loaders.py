"""Contents of a batch, for every order, batch size and number of threads."""

import hashlib
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import replay_operations, views
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ALL, ViewSpec
from pipeline.errors import ArtefactMismatch
from tests.support.supervisions import NUM_CLASSES, supervision_of
from tests.support.view_oracles import specified_code, specified_pixels

SEEDED = ViewSpec(padding=2, flip=True, count=3, seed=5)
EVERY = ViewSpec(padding=1, flip=True, count=ALL)


@pytest.fixture(scope="module")
def beton(prepared):
    return prepared.train


@pytest.fixture(scope="module")
def sources(beton, image_root):
    """Source image of each sample index, found by its key alone."""
    files = [path.read_bytes() for path in image_root.glob("train/*/*.png")]
    by_key = {hashlib.blake2b(content, digest_size=16).digest(): content for content in files}
    images = {}
    for index, key in enumerate(beton.samples.keys):
        path = next(
            p for p in image_root.glob("train/*/*.png") if p.read_bytes() == by_key[key.tobytes()]
        )
        with Image.open(path) as image:
            images[index] = np.asarray(image.convert("RGB"))
    return images


def new_random(beton, **changes):
    """Random order, two threads, seeded views, soft labels by view."""
    settings = {
        "batch_size": 16,
        "view_spec": SEEDED,
        "order": "random",
        "seed": 1,
        "workers": 2,
        "supervision": supervision_of(beton, num_tables=3),
    }
    return BatchLoader(beton, **settings | changes)


@pytest.fixture(scope="module")
def random_loader(beton):
    return new_random(beton)


@pytest.fixture(scope="module")
def sequential_loader(beton):
    """Source order, one thread, every view, soft labels by view; the last batch is of one."""
    return BatchLoader(
        beton,
        batch_size=beton.num_samples - 1,
        view_spec=EVERY,
        seed=1,
        workers=1,
        supervision=supervision_of(beton, num_tables=EVERY.num_views),
    )


def kept(batches):
    """Copies of borrowed batches."""
    return [
        replace(
            batch,
            **{
                name: None if value is None else value.clone()
                for name, value in vars(batch).items()
            },
        )
        for batch in batches
    ]


def indices_of(batches):
    return torch.cat([batch.indices for batch in batches]).tolist()


def epoch_views(spec, beton, *, epoch, seed=1):
    return views.views_of_epoch(spec, beton.samples.keys, epoch=epoch, seed=seed)


def assert_pixels_are_specified(batches, *, spec, numbers, beton, sources):
    for batch in batches:
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            code = specified_code(spec, beton.samples.keys[index], int(numbers[index]))
            expected = specified_pixels(spec, sources[index], code)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("loader_name", ["random_loader", "sequential_loader"])
@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_each_index_comes_once_per_epoch(loader_name, epoch, beton, request):
    loader = request.getfixturevalue(loader_name)
    batches = kept(loader.epoch(epoch))
    assert sorted(indices_of(batches)) == list(range(beton.num_samples))
    assert len(batches) == loader.num_batches
    assert loader.num_samples == beton.num_samples


def test_the_last_batch_may_be_partial_and_even_of_one(random_loader, sequential_loader):
    assert [len(batch) for batch in random_loader.epoch(0)] == [16, 16, 16, 16, 10]
    assert [len(batch) for batch in sequential_loader.epoch(0)] == [73, 1]
    shapes = {tuple(batch.soft_labels.shape) for batch in sequential_loader.epoch(0)}
    assert shapes == {(73, NUM_CLASSES), (1, NUM_CLASSES)}


def test_sequential_order_is_that_of_the_beton(sequential_loader, beton):
    assert indices_of(kept(sequential_loader.epoch(3))) == list(range(beton.num_samples))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_pixels_are_those_of_the_specified_view_of_the_source_image(
    random_loader, sequential_loader, beton, sources, epoch
):
    for loader, spec in ((random_loader, SEEDED), (sequential_loader, EVERY)):
        numbers = epoch_views(spec, beton, epoch=epoch)
        assert_pixels_are_specified(
            kept(loader.epoch(epoch)), spec=spec, numbers=numbers, beton=beton, sources=sources
        )


def test_a_view_has_the_same_pixels_in_any_order_and_batch_size(beton, sources):
    loader = BatchLoader(beton, batch_size=7, view_spec=SEEDED, order="sequential", workers=1)
    shuffled = BatchLoader(beton, batch_size=33, view_spec=SEEDED, order="random", workers=2)
    for view in range(4):
        for each in (loader, shuffled):
            numbers = np.full(beton.num_samples, view)
            assert_pixels_are_specified(
                kept(each.view(view)), spec=SEEDED, numbers=numbers, beton=beton, sources=sources
            )


def test_batches_have_the_promised_types(random_loader):
    batch = kept(islice(random_loader.epoch(0), 1))[0]
    assert batch.images.shape == (16, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (16,))
    assert (batch.indices.dtype, batch.indices.shape) == (torch.int64, (16,))
    assert batch.soft_labels.dtype == torch.float16
    assert (batch.selected.dtype, batch.selected.shape) == (torch.bool, (16,))


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_soft_labels_flags_and_labels_are_those_of_the_image_bit_for_bit(
    random_loader, sequential_loader, beton, epoch
):
    for loader, spec in ((random_loader, SEEDED), (sequential_loader, EVERY)):
        numbers = epoch_views(spec, beton, epoch=epoch)
        given = supervision_of(beton, num_tables=spec.num_views)
        for batch in loader.epoch(epoch):
            index = batch.indices.numpy()
            expected = np.stack([given.soft_labels[numbers[i] - 1][i] for i in index])
            found = batch.soft_labels.numpy()
            assert np.array_equal(found.view(np.int16), expected.view(np.int16))
            assert found[:, 1].tolist() == index.tolist()
            assert (found[:, 0] + 1).tolist() == numbers[index].tolist()
            assert np.array_equal(batch.selected.numpy(), given.selected[index])
            assert np.array_equal(batch.labels.numpy(), beton.samples.labels[index])


def test_one_table_serves_every_view_where_labels_are_not_by_view(beton):
    given = supervision_of(beton, num_tables=1, by_view=False)
    loader = new_random(beton, supervision=given, view_spec=EVERY)
    for batch in loader.epoch(2):
        expected = given.soft_labels[0][batch.indices.numpy()]
        assert np.array_equal(batch.soft_labels.numpy().view("i2"), expected.view("i2"))


@pytest.mark.parametrize("spec", [SEEDED, EVERY], ids=["seeded", "every"])
def test_packed_rows_are_those_of_the_image_bit_for_bit(beton, spec):
    given = supervision_of(beton, num_tables=spec.num_views, top_k=2)
    loader = new_random(beton, view_spec=spec, supervision=given)
    for epoch in (0, 3):
        numbers = epoch_views(spec, beton, epoch=epoch)
        for batch in loader.epoch(epoch):
            assert batch.soft_labels.dtype == torch.uint16
            index = batch.indices.numpy()
            expected = np.stack([given.soft_labels[numbers[i] - 1][i] for i in index])
            assert np.array_equal(batch.soft_labels.numpy(), expected)
            assert batch.soft_labels.numpy()[:, 1].tolist() == index.tolist()


def test_a_fresh_loader_continues_where_another_stopped(random_loader, beton):
    walked = [kept(random_loader.epoch(epoch)) for epoch in range(4)]
    resumed = new_random(beton)
    for batch, expected in zip(resumed.epoch(3), walked[3], strict=True):
        for name, value in vars(expected).items():
            found = getattr(batch, name)
            if value is None:
                assert found is None, name
                continue
            if value.dtype == torch.float16:
                value, found = value.view(torch.int16), found.view(torch.int16)
            assert torch.equal(found, value), name


def test_the_seed_fixes_the_order_and_another_seed_or_epoch_changes_it(random_loader, beton):
    orders = [indices_of(kept(random_loader.epoch(epoch))) for epoch in (0, 1, 2, 0)]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2]
    other = new_random(beton, seed=2)
    others = [indices_of(kept(other.epoch(epoch))) for epoch in range(3)]
    assert not [order for order in others if order in orders]


def test_rows_are_all_that_comes_and_keep_their_indices(beton, sources):
    rows = np.array([3, 9, 11, 40, 73])
    loader = new_random(beton, rows=rows, batch_size=2)
    batches = kept(loader.epoch(1))
    assert sorted(indices_of(batches)) == rows.tolist()
    assert (loader.num_samples, loader.num_batches) == (5, 3)
    numbers = epoch_views(SEEDED, beton, epoch=1)
    assert_pixels_are_specified(batches, spec=SEEDED, numbers=numbers, beton=beton, sources=sources)
    assert torch.cat([b.soft_labels[:, 1] for b in batches]).tolist() == indices_of(batches)


def test_two_loaders_can_be_read_side_by_side(random_loader, sequential_loader, beton, sources):
    pairs = zip(random_loader.epoch(1), sequential_loader.epoch(1), strict=False)
    for mine, theirs in pairs:
        for batch, spec in ((mine, SEEDED), (theirs, EVERY)):
            assert_pixels_are_specified(
                [batch],
                spec=spec,
                numbers=epoch_views(spec, beton, epoch=1),
                beton=beton,
                sources=sources,
            )


def test_an_epoch_is_rejected_while_another_of_the_same_loader_is_open(random_loader):
    first = random_loader.epoch(0)
    next(first)
    with pytest.raises(AssertionError, match="one epoch at a time"):
        next(random_loader.epoch(1))
    first.close()
    assert next(random_loader.epoch(1)).indices.numel() == 16


def error_within(seconds, work):
    """Error of ``work``; None if it raises nothing or hangs, which must not hang the tests."""
    errors = []

    def run():
        try:
            work()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return errors[0] if errors else None


@pytest.mark.parametrize("good_batches", [0, 2, 4])
def test_an_error_inside_the_pipeline_is_raised_and_does_not_hang(
    random_loader, monkeypatch, good_batches
):
    real, calls = replay_operations.replay_stored, []

    def replay(*arguments):
        calls.append(1)
        if len(calls) > good_batches:
            raise RuntimeError("broken on purpose")
        real(*arguments)

    monkeypatch.setattr(replay_operations, "replay_stored", replay)
    before = threading.active_count()
    assert "broken on purpose" in str(error_within(10, lambda: list(random_loader.epoch(0))))
    assert threading.active_count() == before
    monkeypatch.undo()
    assert len(indices_of(kept(random_loader.epoch(0)))) == 74


@pytest.mark.parametrize("read", [1, 2, 5])
def test_leaving_a_loop_early_leaks_no_thread(random_loader, read):
    before = threading.active_count()
    for epoch in range(5):
        for count, _ in enumerate(random_loader.epoch(epoch), start=1):
            if count == read:
                break
        assert threading.active_count() == before
    assert len(indices_of(kept(random_loader.epoch(0)))) == 74


def test_iterating_leaves_torchs_threads_alone(random_loader):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(random_loader.epoch(0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_importing_leaves_torchs_threads_alone():
    code = (
        "import torch; torch.set_num_threads(3); import pipeline.data.loaders; "
        "print(torch.get_num_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "3"


def test_a_label_that_the_soft_labels_were_not_made_for_is_rejected_by_name(beton):
    given = supervision_of(beton, num_tables=3)
    labels = given.labels.copy()
    labels[70] = 1 - labels[70] % 2
    loader = new_random(beton, supervision=replace(given, labels=labels))
    for _ in range(2):  # a refused epoch does not count as checked
        with pytest.raises(ArtefactMismatch, match=r"sample 70 of .*heartcut select") as caught:
            list(loader.epoch(0))
        assert "\n" not in str(caught.value)


def shortened(supervision, name):
    value = getattr(supervision, name)
    return replace(
        supervision,
        **{name: [table[:-1] for table in value] if name == "soft_labels" else value[:-1]},
    )


@pytest.mark.parametrize("name", ["soft_labels", "selected", "labels"])
def test_supervision_of_fewer_rows_is_rejected(beton, name):
    given = shortened(supervision_of(beton, num_tables=3), name)
    with pytest.raises(ArtefactMismatch, match=r"73.* rows .*74"):
        new_random(beton, supervision=given)


@pytest.mark.parametrize(("num_tables", "by_view"), [(2, True), (4, True), (2, False)])
def test_supervision_of_another_number_of_views_is_rejected(beton, num_tables, by_view):
    given = supervision_of(beton, num_tables=num_tables, by_view=by_view)
    with pytest.raises(ArtefactMismatch, match=rf"{num_tables} views .*expected [13]"):
        new_random(beton, supervision=given)


@pytest.mark.parametrize(
    ("made", "declared", "found", "wanted"),
    [
        ({"top_k": 2}, {"top_k": 0}, "7 uint16", "5 float16: 5 classes, dense"),
        ({"top_k": 0}, {"top_k": 2}, "5 float16", "7 uint16: 5 classes, packed, top 2"),
        ({"top_k": 2}, {"top_k": 3}, "7 uint16", "9 uint16: 5 classes, packed, top 3"),
        ({"top_k": 0}, {"num_classes": 6}, "5 float16", "6 float16: 6 classes, dense"),
    ],
)
def test_rows_of_another_layout_are_rejected(beton, made, declared, found, wanted):
    given = replace(supervision_of(beton, num_tables=3, **made), **declared)
    with pytest.raises(ArtefactMismatch, match=rf"{found} numbers .*{wanted}"):
        new_random(beton, supervision=given)


def test_soft_labels_of_fewer_classes_than_the_labels_are_rejected(beton):
    given = supervision_of(beton, num_tables=3, top_k=2)
    with pytest.raises(ArtefactMismatch, match=r"2 classes .*more than 2"):
        new_random(beton, supervision=replace(given, num_classes=2))


def test_the_clean_view_has_no_soft_label_by_view(random_loader):
    with pytest.raises(AssertionError, match="clean view has no slot"):
        next(random_loader.view(0))


@pytest.mark.parametrize("order", ["sequential", "random"])
@pytest.mark.parametrize("skip", [0, 1, 3, 4, 5])
def test_an_epoch_resumes_after_the_batches_that_are_skipped(beton, order, skip):
    loader = new_random(beton, order=order)
    for epoch in (0, 2):
        whole = [(b.indices.clone(), b.images.clone()) for b in loader.epoch(epoch)]
        rest = [(b.indices.clone(), b.images.clone()) for b in loader.epoch(epoch, skip=skip)]
        assert len(rest) == max(len(whole) - skip, 0)
        for (indices, images), (expected, pixels) in zip(rest, whole[skip:], strict=True):
            assert torch.equal(indices, expected)
            assert torch.equal(images, pixels)


def test_labels_are_checked_although_the_first_epoch_began_in_its_middle(beton):
    labels = beton.samples.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    supervision = replace(supervision_of(beton, num_tables=3), labels=labels)
    loader = new_random(beton, order="sequential", supervision=supervision)
    for _ in loader.epoch(0, skip=2):
        pass
    with pytest.raises(ArtefactMismatch, match="sample 0 of"):
        for _ in loader.epoch(1):
            pass


def test_features_belong_to_the_sample_and_the_view(beton):
    rng = np.random.default_rng(3)
    features = [rng.random((beton.num_samples, 6)).astype(np.float16) for _ in range(3)]
    supervision = replace(supervision_of(beton, num_tables=3), features=features)
    loader = new_random(beton, supervision=supervision)
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            expected = features[epoch % 3][batch.indices.numpy()]
            assert np.array_equal(batch.features.numpy(), expected)
            assert (batch.soft_labels[:, 0] == epoch % 3).all()


def test_features_of_other_samples_are_rejected(beton):
    features = [np.zeros((beton.num_samples - 1, 6), np.float16)] * 3
    supervision = replace(supervision_of(beton, num_tables=3), features=features)
    with pytest.raises(ArtefactMismatch, match=r"have 73 and 74 rows \(expected 74"):
        new_random(beton, supervision=supervision)
