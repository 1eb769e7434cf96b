"""Samples find their cache rows by content, in any order; what differs is refused by name."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artefacts.cache.join import ANY_LABELS, join_samples
from pipeline.artefacts.dataset import Samples
from pipeline.errors import ArtefactMismatch
from tests.support.cases import mentions
from tests.support.small_caches import sealed_cache, some_samples

LAST_BYTE, FIRST_BYTE, MIDDLE_BYTE = 15, 0, 8


def join(cache, samples, **settings):
    return join_samples(cache, samples, place="data/train.beton", **settings)


def samples_of(pairs) -> Samples:
    """Samples with keys that differ little, so that every byte of a key must be looked at."""
    keys = np.zeros((len(pairs), 16), dtype=np.uint8)
    for row, (image, _) in enumerate(pairs):
        keys[row, (FIRST_BYTE, MIDDLE_BYTE, LAST_BYTE)[image % 3]] = 255 - image
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return Samples(keys=keys, labels=labels, pixels=255 - keys)


pairs = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 3)), min_size=1, max_size=12)


@settings(max_examples=20)
@given(
    cached=pairs,
    data_sets=st.lists(st.tuples(pairs, st.integers(0, 12)), min_size=8, max_size=8),
    random=st.randoms(use_true_random=False),
)
def test_every_sample_finds_a_row_of_its_image_with_its_label_where_there_is_one(
    cached, data_sets, random
):
    """Permutations, subsets, extras and equal images, against a dictionary of lists."""
    with tempfile.TemporaryDirectory() as folder:
        cache = sealed_cache(Path(folder) / "cache", samples_of(cached))
        for others, num_common in data_sets:
            wanted = others[: 12 - num_common] + cached[:num_common]
            random.shuffle(wanted)
            check_against_a_dictionary(cache, cached, wanted)


def check_against_a_dictionary(cache, cached, wanted):
    rows_of: dict[int, list[int]] = {}
    for row, (image, _) in enumerate(cached):
        rows_of.setdefault(image, []).append(row)
    if not {image for image, _ in wanted} & rows_of.keys():
        if wanted:
            with pytest.raises(ArtefactMismatch, match="has none of the"):
                join(cache, samples_of(wanted))
        return

    def fitting(image, label):
        rows = rows_of.get(image, [-1])
        return [row for row in rows if row >= 0 and cached[row][1] == label] or rows

    differing = [
        i
        for i, (image, label) in enumerate(wanted)
        if image in rows_of and not any(cached[row][1] == label for row in rows_of[image])
    ]
    if differing:
        message = f"with other labels of {len(differing)} of the {len(wanted)} images"
        with pytest.raises(ArtefactMismatch, match=message):
            join(cache, samples_of(wanted))
    joined = join(cache, samples_of(wanted), accept=("labels",))
    assert joined.rows.dtype == np.int64
    for row, (image, label) in zip(joined.rows.tolist(), wanted, strict=True):
        assert row in fitting(image, label)
    assert joined.known.tolist() == [image in rows_of for image, _ in wanted]
    assert joined.num_extra == sum(image not in rows_of for image, _ in wanted)
    assert joined.accepted == (("labels",) if differing else ())
    assert joined.is_identity == (joined.rows.tolist() == list(range(len(wanted))))


@pytest.fixture(scope="module")
def samples() -> Samples:
    return some_samples(40)


@pytest.fixture(scope="module")
def cache(samples, tmp_path_factory):
    return sealed_cache(tmp_path_factory.mktemp("join") / "cache", samples)


def with_changed(samples: Samples, field: str, rows) -> Samples:
    values = {name: getattr(samples, name).copy() for name in ("keys", "labels", "pixels")}
    values[field][rows] += 1
    return Samples(**values)


def test_the_same_samples_are_the_rows_in_order(cache, samples):
    joined = join(cache, samples)
    assert joined.is_identity
    assert (joined.num_extra, joined.accepted) == (0, ())


def test_equal_images_are_the_rows_in_order_too(tmp_path):
    """Or else a whole cache would be copied for the sake of two equal images."""
    twins = samples_of([(3, 1), (4, 0), (3, 1), (3, 2), (4, 0)])
    cache = sealed_cache(tmp_path / "cache", twins)
    assert join(cache, twins).is_identity
    assert join(cache, twins.rows(np.arange(3))).is_identity
    turned = join(cache, twins.rows(np.array([3, 4, 1, 0]))).rows.tolist()
    assert (turned[0], turned[3] in (0, 2)) == (3, True)
    assert set(turned[1:3]) <= {1, 4}


@pytest.mark.parametrize("count", [1, 39])
def test_the_first_of_the_samples_are_in_order_and_others_are_not(cache, samples, count):
    assert join(cache, samples.rows(np.arange(count))).is_identity
    assert not join(cache, samples.rows(np.arange(40 - count, 40))).is_identity
    assert join(cache, samples.rows(np.arange(40 - count, 40))).rows.tolist() == list(
        range(40 - count, 40)
    )


def test_a_permutation_is_undone(cache, samples):
    order = np.random.default_rng(0).permutation(40)
    joined = join(cache, samples.rows(order))
    assert np.array_equal(joined.rows, order)
    assert joined.known.all()


@pytest.mark.parametrize(("field", "count"), [("labels", 1), ("labels", 5), ("pixels", 5)])
def test_what_differs_is_rejected_with_the_count_and_at_most_three_examples(
    cache, samples, field, count
):
    rows = np.array([30, 4, 17, 9, 22])[:count]
    changed = with_changed(samples, field, rows)
    with pytest.raises(ArtefactMismatch) as caught:
        join(cache, changed)
    line = str(caught.value)
    assert "\n" not in line
    assert mentions(line, field, count, 40, "data/train.beton")
    assert cache.path in line
    assert f"`--accept-mismatch {field}`" in line
    first = sorted(rows.tolist())[:3]
    assert [int(i) for i in re.findall(r"sample (\d+) \(", line)] == first
    for i in first:
        assert samples.keys[i].tobytes().hex()[:12] in line
    if field == "labels":
        i = first[0]
        assert mentions(line, samples.labels[i] + 1, samples.labels[i])


@pytest.mark.parametrize("field", ["labels", "pixels"])
def test_what_differs_is_accepted_by_its_name_alone(cache, samples, field):
    changed = with_changed(samples, field, [3, 5])
    other = {"labels": "pixels", "pixels": "labels"}[field]
    joined = join(cache, changed, accept=(field,))
    assert (joined.accepted, joined.is_identity) == ((field,), True)
    with pytest.raises(ArtefactMismatch, match=f"other {field} of 2 of"):
        join(cache, changed, accept=(other,))


def test_accepting_what_does_not_differ_records_nothing(cache, samples):
    assert join(cache, samples, accept=("labels", "pixels")).accepted == ()


def test_where_both_differ_each_must_be_accepted(cache, samples):
    changed = with_changed(with_changed(samples, "labels", [0]), "pixels", [1])
    with pytest.raises(ArtefactMismatch, match=r"labels of 1\b"):
        join(cache, changed)
    with pytest.raises(ArtefactMismatch, match=r"pixels of 1\b"):
        join(cache, changed, accept=ANY_LABELS)
    assert join(cache, changed, accept=("pixels", "labels")).accepted == ("labels", "pixels")


def test_one_flipped_bit_of_a_key_is_another_image(cache, samples):
    for byte in range(16):
        keys = samples.keys.copy()
        keys[7, byte] ^= 1
        changed = Samples(keys=keys, labels=samples.labels, pixels=samples.pixels)
        assert np.flatnonzero(~join(cache, changed).known).tolist() == [7]


@pytest.mark.parametrize("accept", [(), ("labels", "pixels")])
def test_samples_that_are_all_unknown_are_rejected_for_every_accepted_mismatch(cache, accept):
    with pytest.raises(ArtefactMismatch) as caught:
        join(cache, some_samples(11, seed=1), accept=accept)
    line = str(caught.value)
    assert mentions(line, 11, "data/train.beton")
    assert "heartcut cache-teacher" in line
    assert "\n" not in line


def test_labels_and_pixels_of_extras_are_not_compared(cache, samples):
    both = Samples(
        **{
            name: np.concatenate([getattr(some_samples(5, seed=1), name), getattr(samples, name)])
            for name in ("keys", "labels", "pixels")
        },
    )
    joined = join(cache, both)
    assert joined.rows.tolist() == [-1] * 5 + list(range(40))
    assert (joined.num_extra, joined.accepted) == (5, ())
