"""Views against a second implementation of their specification, in Python integers alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional

from pipeline.data.views import ALL, ViewSpec, replay, view_codes, views_of_epoch
from tests.support.image_folders import textures
from tests.support.view_oracles import (
    hashed,
    key_words,
    sample_keys,
    sha256,
    specified_code,
    specified_pixels,
)

CROPS = ViewSpec(padding=4, flip=True, count=6, seed=7)
EVERY = ViewSpec(padding=4, flip=True, count=ALL)

GOLDEN_SEEDED = "b7a7e54548d3126072769dd77c0a9bb7efc1784724c6da87cfc6c1eef5c16c05"
GOLDEN_EPOCHS = "e4da741bf610644a0657e1b6a1d10d0ee1b6e9e72d413bb15ec9d3bd50d8151b"
GOLDEN_PIXELS = "d78736bbc3238239954d6fb097cf80556a815eded20104bb08b1ed09379728d9"


def replayed(spec, images, codes):
    destination = np.full_like(images, 123)
    replay(images, codes, spec.padding, 2 if spec.flip else 1, destination)
    return destination


specs = st.builds(
    ViewSpec,
    padding=st.integers(1, 5),
    flip=st.booleans(),
    count=st.integers(1, 9),
    seed=st.sampled_from([0, 1, 7, 2**31 - 1, 2**63, 2**64 - 1]),
)


@given(spec=specs, keys=st.lists(st.binary(min_size=16, max_size=16), min_size=1), data=st.data())
def test_codes_are_those_of_the_specification_in_python_integers(spec, keys, data):
    views = [data.draw(st.integers(0, spec.num_views)) for _ in keys]
    rows = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)
    codes = view_codes(spec, rows, np.array(views))
    expected = [specified_code(spec, key, view) for key, view in zip(keys, views, strict=True)]
    assert codes.tolist() == expected
    assert codes.dtype == np.int32


@given(spec=specs, seed=st.integers(0, 99), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_pixels_are_those_of_pad_cut_and_mirror(spec, seed, size):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5, *size, 3), dtype=np.uint8)
    codes = rng.integers(0, spec.num_codes, 5).astype(np.int32)
    expected = [specified_pixels(spec, *pair) for pair in zip(images, codes, strict=True)]
    assert np.array_equal(replayed(spec, images, codes), np.stack(expected))


def test_every_code_of_padding_4_is_replayed_as_specified():
    image = textures(1, seed=3)[0]
    codes = np.arange(162, dtype=np.int32)
    expected = [specified_pixels(EVERY, image, code) for code in codes]
    assert np.array_equal(replayed(EVERY, np.stack([image] * 162), codes), np.stack(expected))


def test_crops_are_those_of_torchvision():
    images = textures(20, seed=4)
    codes = np.arange(20, dtype=np.int32) * 8  # every eighth code, none flipped
    ours = replayed(EVERY, images, codes)
    for image, mine, code in zip(images, ours, codes // 2, strict=True):
        padded = functional.pad(torch.from_numpy(image).permute(2, 0, 1), [4])
        theirs = functional.crop(padded, *divmod(int(code), 9), 16, 16)
        assert np.array_equal(mine, theirs.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("spec", [CROPS, EVERY, replace(CROPS, flip=False), ViewSpec()])
def test_view_0_is_the_clean_image(spec):
    images = textures(4, seed=5)
    codes = view_codes(spec, sample_keys(4), np.zeros(4, dtype=np.int64))
    assert np.array_equal(replayed(spec, images, codes), images)


@pytest.mark.parametrize(
    ("padding", "flip", "count"), [(4, True, 162), (2, False, 25), (0, True, 2)]
)
def test_all_views_are_every_crop_and_flip_exactly_once(padding, flip, count):
    spec = ViewSpec(padding=padding, flip=flip, count=ALL)
    assert spec.num_views == count
    views = np.arange(1, count + 1)
    codes = view_codes(spec, np.repeat(sample_keys(1), count, axis=0), views)
    assert sorted(codes.tolist()) == list(range(count))
    images = replayed(spec, np.repeat(textures(1, seed=6), count, axis=0), codes)
    assert len({image.tobytes() for image in images}) == count


def test_a_view_depends_on_the_key_alone_and_not_on_order_or_batch():
    keys, images = sample_keys(50), textures(50, seed=8)
    views = np.arange(50) % (CROPS.num_views + 1)
    codes = view_codes(CROPS, keys, views)
    whole = replayed(CROPS, images, codes)
    order = np.random.default_rng(0).permutation(50)
    shuffled = view_codes(CROPS, keys[order], views[order])
    assert np.array_equal(shuffled, codes[order])
    for part in np.array_split(order, [1, 8, 33]):
        alone = replayed(CROPS, images[part], view_codes(CROPS, keys[part], views[part]))
        assert np.array_equal(alone, whole[part])


def test_one_view_number_serves_all_keys():
    keys = sample_keys(5)
    assert np.array_equal(
        view_codes(CROPS, keys, np.int64(2)), view_codes(CROPS, keys, np.full(5, 2))
    )


def test_keys_that_are_a_slice_of_a_table_have_the_same_codes():
    table = np.concatenate([sample_keys(10), sample_keys(10, seed=1)], axis=1)
    views = np.ones(10, dtype=np.int64)
    assert np.array_equal(
        view_codes(CROPS, table[:, :16], views), view_codes(CROPS, sample_keys(10), views)
    )


def chi_square(codes, bins):
    counts = np.bincount(codes, minlength=bins)
    expected = len(codes) / bins
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("view", [1, 2, 6])
def test_seeded_codes_are_uniform_over_samples(view):
    codes = view_codes(CROPS, sample_keys(16_200), np.full(16_200, view))
    assert chi_square(codes, 162) < 161 + 4 * (2 * 161) ** 0.5  # four standard deviations


def test_seeded_codes_of_two_views_are_independent():
    keys = sample_keys(20_000)
    spec = ViewSpec(padding=1, flip=False, count=2)
    first, second = (view_codes(spec, keys, np.full(20_000, view)) for view in (1, 2))
    assert chi_square(9 * first + second, 81) < 80 + 4 * 160**0.5


def test_another_seed_gives_other_views():
    keys, views = sample_keys(1000), np.ones(1000, dtype=np.int64)
    same = view_codes(CROPS, keys, views) == view_codes(replace(CROPS, seed=8), keys, views)
    assert same.mean() < 0.05


def test_codes_and_pixels_of_today_are_those_of_the_first_release():
    keys = sample_keys(64)
    codes = np.stack([view_codes(CROPS, keys, np.full(64, view)) for view in range(7)])
    assert sha256(codes.astype("<i4")) == GOLDEN_SEEDED
    epochs = np.stack([views_of_epoch(EVERY, keys, epoch=e, seed=3) for e in range(5)])
    assert sha256(epochs.astype("<i8")) == GOLDEN_EPOCHS
    y, x, channel = np.indices((16, 16, 3))
    images = np.stack([((y * 16 + x) * 3 + channel + i) % 256 for i in range(64)]).astype(np.uint8)
    assert sha256(replayed(CROPS, images, codes[3])) == GOLDEN_PIXELS


@pytest.mark.parametrize("views", [[-1], [7], [1, 2, 99], [0, -3]])
def test_a_view_outside_the_spec_is_rejected(views):
    with pytest.raises(ValueError, match=r"views must be in 0\.\.6, got"):
        view_codes(CROPS, sample_keys(len(views)), np.array(views))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": -1}, "padding must be >= 0, got -1"),
        ({"padding": 1, "count": -2}, "count must be >= 0, or -1 for all views, got -2"),
        ({"count": 1}, "are all the clean image; set count = 0"),
        ({"count": ALL}, "are all the clean image; set count = 0"),
        ({"padding": 1, "count": 1, "seed": -1}, "seed must be in .* got -1"),
        ({"padding": 1, "count": 1, "seed": 2**64}, "seed must be in"),
    ],
)
def test_an_impossible_spec_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        ViewSpec(**fields)


def test_epochs_walk_through_the_seeded_views_together():
    keys = sample_keys(9)
    walked = [views_of_epoch(CROPS, keys, epoch=epoch, seed=1) for epoch in range(13)]
    assert [sorted(set(views.tolist())) for views in walked] == [[1 + e % 6] for e in range(13)]


def test_every_sample_draws_its_own_view_where_all_exist():
    keys = sample_keys(16_200)
    views = views_of_epoch(EVERY, keys, epoch=3, seed=1)
    assert views.min() == 1
    assert views.max() == 162
    assert chi_square(views - 1, 162) < 161 + 4 * (2 * 161) ** 0.5
    expected = [1 + ((hashed(2, 1, *key_words(key), 3) >> 32) * 162 >> 32) for key in keys[:50]]
    assert views[:50].tolist() == expected


def test_epochs_and_seeds_draw_other_views_and_repeat_them():
    keys = sample_keys(500)
    first = views_of_epoch(EVERY, keys, epoch=0, seed=1)
    assert np.array_equal(first, views_of_epoch(EVERY, keys, epoch=0, seed=1))
    for epoch, seed in ((1, 1), (0, 2)):
        assert (first == views_of_epoch(EVERY, keys, epoch=epoch, seed=seed)).mean() < 0.05


def test_without_views_every_epoch_is_clean():
    assert not views_of_epoch(ViewSpec(padding=4), sample_keys(5), epoch=3, seed=1).any()


def test_a_seed_without_effect_is_not_part_of_what_identifies_a_spec():
    assert "seed" not in replace(EVERY, seed=5).as_json()
    assert replace(EVERY, seed=5).as_json() == EVERY.as_json()
    assert CROPS.as_json() != replace(CROPS, seed=8).as_json()


def test_without_views_padding_and_flip_identify_nothing():
    assert ViewSpec(padding=4, flip=True).as_json() == ViewSpec().as_json()


@pytest.mark.parametrize("spec", [CROPS, EVERY, ViewSpec(), ViewSpec(flip=True, count=2, seed=3)])
def test_a_spec_is_read_back_from_what_identifies_it(spec):
    assert ViewSpec.from_json(spec.as_json()) == spec


@pytest.mark.parametrize(
    ("spec", "name"),
    [(CROPS, "crop4-flip x 6"), (EVERY, "crop4-flip x all"), (ViewSpec(), "clean")],
)
def test_a_spec_has_a_short_name(spec, name):
    assert spec.name == name
