"""Random resized crops: against their specification in plain Python, and torchvision's law."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from pipeline.data import resized_crops
from pipeline.data.resized_crops import ResizedCropSpec, crop_boxes
from pipeline.data.view_specs import views_from_json, views_of_epoch
from pipeline.data.views import ALL, ViewSpec
from tests.support.view_oracles import hashed, key_words, mixed, sample_keys, sha256

SPEC = ResizedCropSpec(size=32, count=6, seed=7)
FRESH = replace(SPEC, count=ALL, seed=0)

GOLDEN_BOXES = "0daecfaa0326d39ff24a2f3467c05c36e96d533b688aee64f4e6f302ffd6d8b6"
GOLDEN_FRESH = "5ac96c8b07942351dbdbc3235026b6240eb354f0572d6374150b2dda89c34b54"
GOLDEN_RATIOS = "6e40693eaa7598d73c9b2c970d73847542956e371ed1aae1b982cfb651db3898"


def specified_ratio(spec, index):
    value, root = spec.ratio[0], spec.ratio[1] / spec.ratio[0]
    for bit in range(15, -1, -1):
        root = math.sqrt(root)
        value = value * root if index >> bit & 1 else value
    return value


def specified_box(spec, key, view, size, *, seed=None):
    """The docstring of the module, one sample at a time."""
    height, width = size
    if view == 0:
        side = max(1, round(spec.centre * min(size)))
        return [(height - side) // 2, (width - side) // 2, side, side, 0]
    domain, seed = (3, spec.seed) if spec.count != ALL else (4, seed)
    state = hashed(domain, seed, *key_words(key), view)

    def word(count):
        return mixed(state ^ count)

    flip = word(0) >> 63 if spec.flip else 0
    for t in range(10):
        smallest, largest = spec.scale
        share = (word(1 + 4 * t) >> 11) / 2**53
        area = height * width * (smallest + (largest - smallest) * share)
        ratio = specified_ratio(spec, word(2 + 4 * t) >> 48)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = ((word(3 + 4 * t) >> 32) * (height - h + 1)) >> 32
            left = ((word(4 + 4 * t) >> 32) * (width - w + 1)) >> 32
            return [top, left, h, w, flip]
    h = min(max(round(width / spec.ratio[0]), 1), height)
    w = min(max(round(height * spec.ratio[1]), 1), width)
    h = h if width / height < spec.ratio[0] else height
    w = w if width / height > spec.ratio[1] else width
    return [(height - h) // 2, (width - w) // 2, h, w, flip]


sides = st.one_of(st.integers(1, 12), st.integers(1, 700))
shares = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple)
specs = st.builds(
    ResizedCropSpec,
    size=st.just(8),
    scale=st.one_of(st.just((0.08, 1.0)), shares),
    ratio=st.one_of(st.just((3 / 4, 4 / 3)), ratios),
    flip=st.booleans(),
    centre=st.floats(0.1, 1),
    count=st.sampled_from([1, 5, ALL]),
    seed=st.sampled_from([0, 7, 2**63, 2**64 - 1]),
)


@given(spec=specs, size=st.tuples(sides, sides), view=st.integers(0, 5), seed=st.integers(0, 99))
def test_boxes_are_those_of_the_specification_in_plain_python(spec, size, view, seed):
    view = min(view, spec.num_views)
    keys = sample_keys(20, seed=seed)
    sizes = np.tile(size, (20, 1))
    boxes = crop_boxes(spec, keys, np.int64(view), sizes=sizes, seed=seed)
    expected = [specified_box(spec, key, view, size, seed=seed) for key in keys]
    assert boxes.tolist() == expected
    assert boxes.dtype == np.int32


@given(spec=specs, size=st.tuples(sides, sides), view=st.integers(0, 5))
def test_every_box_is_in_its_image_and_is_not_empty(spec, size, view):
    sizes = np.tile(size, (50, 1))
    numbers = np.int64(min(view, spec.num_views))
    top, left, h, w, flip = crop_boxes(spec, sample_keys(50), numbers, sizes=sizes, seed=1).T
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() <= size[0]
    assert (left + w).max() <= size[1]
    assert set(flip.tolist()) <= {0, 1}


SHAPES = [(375, 500), (500, 333), (8, 8), (64, 40), (100, 150)]
STRIPS = [(60, 600), (600, 60), (40, 97)]
TORCHVISION = 4000
OURS = 20_000


@lru_cache
def torchvision_boxes(size):
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    drawn = [
        RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(TORCHVISION)
    ]
    return np.array(drawn)


def our_boxes(size):
    sizes = np.tile(size, (OURS, 1))
    return crop_boxes(SPEC, sample_keys(OURS), np.int64(3), sizes=sizes)


def is_fallback(boxes, size):
    """Central, and of the largest admissible extent; a crop that fits is so in one of thousands."""
    fallback = resized_crops._fallback(SPEC, np.array([size]))[0]
    return (boxes[:, :4] == fallback[:4]).all(axis=1)


def p_values(size):
    """That both draw by one law, by what they draw."""
    ours, theirs = our_boxes(size), torchvision_boxes(size)
    fallbacks = [[int(is_fallback(b, size).sum()), len(b)] for b in (ours, theirs)]
    chances = {}
    (a, n), (b, m) = fallbacks
    if a + b > 20:
        chances["fallback share"] = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    of_tries = [b[~is_fallback(b, size)].astype(float) for b in (ours, theirs)]
    features = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "height": lambda b: b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "below": lambda b: size[0] - b[:, 0] - b[:, 2],
        "place": lambda b: b[:, 0] / np.maximum(size[0] - b[:, 2], 1),
    }
    for name, feature in features.items():
        chances[name] = stats.ks_2samp(*(feature(b) for b in of_tries), method="asymp").pvalue
    if max(size) <= 10:  # so few places that each can be counted
        both = np.concatenate([ours[:, :4], theirs])
        which = np.unique(both, axis=0, return_inverse=True)[1].ravel()
        counts = np.stack(
            [np.bincount(part, minlength=which.max() + 1) for part in np.split(which, [len(ours)])]
        )
        chances["places"] = stats.chi2_contingency(counts[:, counts.sum(axis=0) > 20]).pvalue
    return chances


@pytest.mark.parametrize("size", [*SHAPES, *STRIPS])
def test_boxes_follow_the_law_of_torchvision(size):
    chances = p_values(size)
    assert min(chances.values()) > 1e-4, chances


def test_fallbacks_are_as_frequent_as_torchvision_s_and_are_tested():
    assert all("fallback share" in p_values(size) for size in STRIPS)


def uniform_ratios(smallest, largest):
    return np.linspace(smallest, largest, 2**16)


def one_place_fewer(hashed, bound):
    return resized_crops_bounded(hashed, np.maximum(np.asarray(bound, dtype=np.int64) - 1, 1))


resized_crops_bounded = resized_crops.bounded
WRONG_LAWS = {
    "ratio uniform instead of log-uniform": ("_ratios", uniform_ratios, (375, 500)),
    "last place never drawn": ("bounded", one_place_fewer, (8, 8)),
    "a single try": ("TRIES", 1, (60, 600)),
    "eight tries": ("TRIES", 8, (40, 97)),
}


@pytest.mark.parametrize("name", WRONG_LAWS)
def test_a_wrong_law_is_distinguished_from_torchvision_s(name, monkeypatch):
    attribute, wrong, size = WRONG_LAWS[name]
    monkeypatch.setattr(resized_crops, attribute, wrong)
    assert min(p_values(size).values()) < 1e-4


@pytest.mark.parametrize(
    "wrong", [replace(SPEC, scale=(0.12, 1.0)), replace(SPEC, ratio=(0.8, 1.25))]
)
def test_another_range_is_distinguished_from_torchvision_s(wrong, monkeypatch):
    monkeypatch.setitem(globals(), "SPEC", wrong)
    assert min(p_values((375, 500)).values()) < 1e-4


def test_flips_are_as_many_as_not_and_independent_of_the_place():
    flip = our_boxes((375, 500))[:, 4].astype(bool)
    assert stats.binomtest(int(flip.sum()), OURS).pvalue > 1e-4
    left = our_boxes((375, 500))[:, 1]
    assert stats.ks_2samp(left[flip], left[~flip]).pvalue > 1e-4
    assert not crop_boxes(
        replace(SPEC, flip=False), sample_keys(99), np.int64(1), sizes=np.tile((9, 9), (99, 1))
    )[:, 4].any()


def test_two_views_of_an_image_are_independent():
    sizes = np.tile((375, 500), (OURS, 1))
    first, second = (
        crop_boxes(SPEC, sample_keys(OURS), np.int64(view), sizes=sizes) for view in (1, 2)
    )
    for column in range(5):
        assert abs(stats.spearmanr(first[:, column], second[:, column]).statistic) < 0.03


def test_a_box_depends_on_key_and_size_alone_and_not_on_order_or_batch():
    keys, rng = sample_keys(60), np.random.default_rng(0)
    sizes, views = rng.integers(1, 700, (60, 2)), np.arange(60) % 7
    whole = crop_boxes(SPEC, keys, views, sizes=sizes)
    order = rng.permutation(60)
    for part in np.array_split(order, [1, 8, 33]):
        alone = crop_boxes(SPEC, keys[part], views[part], sizes=sizes[part])
        assert np.array_equal(alone, whole[part])


def test_the_side_that_crops_are_resized_to_moves_no_box():
    keys, sizes = sample_keys(60), np.tile((300, 400), (60, 1))
    for view in range(3):
        boxes = [
            crop_boxes(replace(SPEC, size=size), keys, np.int64(view), sizes=sizes)
            for size in (32, 224)
        ]
        assert np.array_equal(*boxes)


def test_without_an_end_of_views_every_epoch_and_every_seed_has_its_own():
    keys, sizes = sample_keys(200), np.tile((300, 400), (200, 1))
    seen = []
    for epoch, seed in [(0, 1), (1, 1), (999, 1), (0, 2)]:
        numbers = views_of_epoch(FRESH, keys, epoch=epoch, seed=seed)
        seen.append(crop_boxes(FRESH, keys, numbers, sizes=sizes, seed=seed))
    assert len(np.unique(np.concatenate(seen), axis=0)) == 800
    again = crop_boxes(FRESH, keys, np.int64(1), sizes=sizes, seed=1)
    assert np.array_equal(again, seen[0])


def test_epochs_walk_through_the_views_of_a_seed_together():
    walked = [views_of_epoch(SPEC, sample_keys(3), epoch=e, seed=1).tolist() for e in range(8)]
    assert walked == [[1 + e % 6] * 3 for e in range(8)]
    assert not views_of_epoch(SPEC.clean, sample_keys(3), epoch=5, seed=1).any()


def test_boxes_of_today_are_those_of_the_first_release():
    keys = sample_keys(64)
    sizes = np.random.default_rng(0).integers(20, 700, (64, 2))
    boxes = [crop_boxes(SPEC, keys, np.int64(view), sizes=sizes) for view in range(7)]
    fresh = [crop_boxes(FRESH, keys, np.int64(view), sizes=sizes, seed=5) for view in range(1, 4)]
    ratios = resized_crops._ratios(3 / 4, 4 / 3)
    found = (
        sha256(np.stack(boxes).astype("<i4")),
        sha256(np.stack(fresh).astype("<i4")),
        sha256(ratios.astype("<f8")),
    )
    assert found == (GOLDEN_BOXES, GOLDEN_FRESH, GOLDEN_RATIOS)


@pytest.mark.parametrize(
    "spec", [SPEC, FRESH, SPEC.clean, replace(SPEC, scale=(0.25, 0.5), flip=False)]
)
def test_a_spec_is_read_back_from_what_identifies_it(spec):
    assert views_from_json(spec.as_json()) == spec


@pytest.mark.parametrize("spec", [ViewSpec(), ViewSpec(padding=4, flip=True, count=3, seed=9)])
def test_crops_of_the_padded_image_identify_themselves_as_ever(spec):
    assert "kind" not in spec.as_json()
    assert views_from_json(spec.as_json()) == spec


def test_views_of_a_kind_that_is_not_known_are_rejected():
    with pytest.raises(ValueError, match="'mixup'"):
        views_from_json({"kind": "mixup", "count": 3})


@pytest.mark.parametrize(
    ("spec", "name"),
    [(SPEC, "rrc32-flip x 6"), (FRESH, "rrc32-flip x fresh"), (SPEC.clean, "centre32")],
)
def test_a_spec_has_a_short_name(spec, name):
    assert spec.name == name


@pytest.mark.parametrize(
    ("fields", "chances"),
    [
        ({"size": 0}, "size must be >= 1, got 0"),
        ({"scale": (0.5, 0.2)}, "scale must be two shares, the smaller first"),
        ({"scale": (0.0, 1.0)}, "scale must be two shares"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two numbers above 0, the smaller first"),
        ({"centre": 1.5}, r"centre must be in \(0, 1\], got 1.5"),
        ({"count": -2}, "count must be >= 0, or -1 for one per epoch, got -2"),
        ({"seed": -1}, "seed must be in .* got -1"),
    ],
)
def test_an_impossible_spec_is_rejected(fields, chances):
    with pytest.raises(ValueError, match=chances):
        ResizedCropSpec(**{"size": 32, **fields})


def test_a_view_outside_the_spec_is_rejected():
    with pytest.raises(ValueError, match=r"views must be in 0\.\.6, got 7\.\.7"):
        crop_boxes(SPEC, sample_keys(1), np.array([7]), sizes=np.array([[9, 9]]))
