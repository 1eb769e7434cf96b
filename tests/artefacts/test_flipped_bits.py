"""A flipped bit in any file that commands write is rejected, repaired or of no effect."""

import logging
from pathlib import Path

import pytest

from tests.artefacts.flips import (
    FORMATS,
    RECOMPUTED,
    bits_of,
    files_by_format,
    flip_bits,
    make_workspace,
)

NUM_BITS = 200
FEWER_BITS = {
    **dict.fromkeys(RECOMPUTED, 60),
    "betons": 100,
    "samples of the data set": 100,
}
"""For formats that are recomputed, or read with 32 MiB of betons."""
NAMES = list(dict.fromkeys(one.name for one in FORMATS))
WITHOUT_EFFECT = {
    "unfinished run: `metrics.jsonl`",
    "TensorBoard events",
    "tracebacks of a sweep",
}
"""No command reads them."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("flips") / "work")


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_rejected_repaired_or_without_effect(workspace, name, caplog):
    """`flip_bits` fails where a flip changes what is read, or raises another error."""
    caplog.set_level(logging.ERROR)  # repairs warn
    paths = files_by_format(workspace)[name]
    most = FEWER_BITS.get(name, NUM_BITS)
    of_largest = max(paths, key=lambda path: path.stat().st_size)
    for path in {paths[0], of_largest}:
        bits = bits_of(path, most)
        found = flip_bits(workspace, path, bits)
        assert found.total() == len(bits)
        if name in WITHOUT_EFFECT:
            assert found["no effect"] == len(bits)
        else:
            kind = "repaired" if name in RECOMPUTED else "rejected"
            assert found[kind] > 0.7 * len(bits), found


def test_no_bit_of_a_record_can_be_flipped_unseen(workspace):
    """All bits of the record that the ids of runs do not cover."""
    path = workspace / "data" / "dataset.json"
    bits = bits_of(path, 8 * path.stat().st_size)
    assert flip_bits(workspace, path, bits)["rejected"] == len(bits)
