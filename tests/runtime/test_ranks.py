"""Parts of several ranks are the whole, once, and in the batches of one process."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.runtime.ranks import ALONE, Ranks, part_of

VIEWS = ViewSpec(padding=1, flip=True, count=2)


@pytest.fixture(scope="module")
def beton(prepared):
    return prepared.train


@given(total=st.integers(0, 50), world=st.integers(1, 8))
def test_shares_follow_each_other_and_differ_by_one_row_at_most(total, world):
    parts = [part_of(total, rank=rank, world=world) for rank in range(world)]
    assert parts[0].start == 0
    assert parts[-1].stop == total
    assert all(one.stop == other.start for one, other in pairwise(parts))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_alone_everything_is_the_identity():
    rows = torch.arange(6.0)
    assert ALONE.gathered(rows) is rows
    assert ALONE.summed(rows) is rows
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.part(6) == slice(0, 6)


def loaders(beton, *, world, **settings):
    ranks = [Ranks(rank=rank, world=world) for rank in range(world)]
    return [BatchLoader(beton, batch_size=12, ranks=one, workers=1, **settings) for one in ranks]


def seen(batches):
    return [(batch.indices.clone(), batch.images.clone()) for batch in batches]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("num_rows", "skip"), [(37, 0), (36, 0), (37, 2), (38, 3), (39, 1)])
def test_the_ranks_parts_of_a_batch_are_the_batch(beton, world, num_rows, skip):
    rows = np.arange(num_rows)
    settings = {"view_spec": VIEWS, "rows": rows, "order": "random", "seed": 3}
    (whole,) = loaders(beton, world=1, **settings)
    parts = loaders(beton, world=world, **settings)
    expected = seen(whole.epoch(1, skip=skip))
    found = [seen(part.epoch(1, skip=skip)) for part in parts]
    assert {len(batches) for batches in found} == {len(expected)}
    for number, (indices, images) in enumerate(expected):
        assert torch.equal(torch.cat([batches[number][0] for batches in found]), indices)
        assert torch.equal(torch.cat([batches[number][1] for batches in found]), images)
    assert {part.num_batches for part in parts} == {whole.num_batches}
    assert {part.num_samples for part in parts} == {num_rows}


@pytest.mark.parametrize(("world", "num_rows"), [(2, 37), (3, 38), (4, 3)])
def test_a_view_is_seen_once_in_order_by_all_ranks_together(beton, world, num_rows):
    rows = np.arange(5, 5 + num_rows)
    found = [seen(part.view(0)) for part in loaders(beton, world=world, rows=rows)]
    indices = torch.cat([batch[0] for batches in found for batch in batches])
    assert indices.tolist() == rows.tolist()
    assert all(batches for batches in found)  # an empty batch where there is nothing


def test_an_empty_batch_has_the_shapes_of_others(beton):
    last = loaders(beton, world=4, rows=np.arange(13), order="random")[3]
    batches = seen(last.epoch(0))
    assert [len(indices) for indices, _ in batches] == [3, 0]
    assert batches[1][1].shape[1:] == batches[0][1].shape[1:]
