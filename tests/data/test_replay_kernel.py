"""The kernel that reads a beton's bytes gives the views of the plain definition, to the bit."""

import numpy as np
import pytest

from pipeline.data.replay_kernel import replay_stored
from pipeline.data.views import replay


@pytest.mark.parametrize("num_flips", [1, 2])
@pytest.mark.parametrize(
    ("height", "width", "padding"), [(5, 7, 2), (3, 1, 1), (1, 4, 6), (8, 8, 0), (2, 3, 9)]
)
def test_every_view_of_a_stored_image_is_that_of_its_definition(height, width, padding, num_flips):
    rng = np.random.default_rng(3)
    images = rng.integers(1, 256, (4, height, width, 3), dtype=np.uint8)
    codes = np.arange((2 * padding + 1) ** 2 * num_flips, dtype=np.int32)
    which = rng.integers(0, len(images), len(codes))
    file = np.concatenate([rng.integers(0, 256, 11, dtype=np.uint8), images.reshape(-1)])
    positions = 11 + which * images[0].size
    room = np.full((len(codes) + 2, height, width, 3), 77, dtype=np.uint8)
    expected = np.empty_like(room[1:-1])
    replay(images[which], codes, padding, num_flips, expected)
    replay_stored(file, positions, codes, padding, num_flips, room[1:-1])
    np.testing.assert_array_equal(room[1:-1], expected)
    assert (room[0] == 77).all()
    assert (room[-1] == 77).all()
