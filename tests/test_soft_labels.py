"""Soft labels: round trip, two ways to read them, damage refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.artefacts.soft_labels import SoftLabelIdentity, SoftLabels, write
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from tests.workspaces import flipped, read_or_refusal

SHAPE = (3, 7, 5)


def identity_of(**changes) -> SoftLabelIdentity:
    fields = {
        "cache": "a" * 64,
        "view_spec": {"padding": 1, "flip": False, "count": 3, "seed": 0},
        "revision": "wrong",
        "eta": 0.8,
        "temperature": 4.0,
        "revise_at": 4.0,
        "views": (1, 2, 3),
    }
    return SoftLabelIdentity.model_validate(fields | changes)


def rows() -> np.ndarray:
    drawn = np.random.default_rng(0).dirichlet(np.ones(SHAPE[2]), SHAPE[:2])
    return drawn.astype(np.float16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "a.soft", identity=identity_of(), views=iter(rows()), shape=SHAPE)
    return tmp_path / "a.soft"


def test_what_is_read_is_what_was_written(path):
    soft = SoftLabels.open(path)
    assert (soft.record.identity, soft.id) == (identity_of(), identity_of().id)
    assert [view.dtype for view in soft.views()] == [np.float16] * 3
    assert np.array_equal(np.stack(soft.views()), rows())


def test_memory_maps_equal_what_any_zarr_reader_sees(path):
    array = zarr.open_array(path, mode="r")
    assert np.array_equal(np.stack(SoftLabels.open(path).views()), array[:])
    assert array.metadata.dimension_names == ("view", "sample", "class")


def test_views_are_mapped_and_not_loaded(path):
    assert all(isinstance(view, np.memmap) for view in SoftLabels.open(path).views())


def test_only_labels_of_the_clean_view_serve_every_view(tmp_path):
    shape = (1, *SHAPE[1:])
    write(tmp_path / "c", identity=identity_of(views=(0,)), views=rows()[:1], shape=shape)
    assert not SoftLabels.open(tmp_path / "c").by_view


def test_labels_of_cached_views_belong_to_them(path):
    assert SoftLabels.open(path).by_view


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "b" * 64},
        {"view_spec": {"padding": 1, "flip": True, "count": 3, "seed": 0}},
        {"revision": "all"},
        {"eta": 0.7},
        {"temperature": 2.0},
        {"revise_at": 1.0},
        {"views": (0,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_the_identity_changes_the_id(change):
    assert identity_of(**change).id != identity_of().id
    assert len(SoftLabelIdentity.model_fields) == 7


def test_a_flipped_byte_in_any_view_is_refused(path):
    for stored in path.glob("c/*/0/0"):
        for offset in range(stored.stat().st_size):
            with flipped(stored, offset), pytest.raises(ArtefactMismatch, match="is damaged"):
                SoftLabels.open(path)


def test_a_changed_bit_in_the_record_is_refused_or_harmless(path):
    reference = SoftLabels.open(path).record
    record = path / "soft_labels.json"
    for offset in range(record.stat().st_size):
        with flipped(record, offset, mask=1 << (offset % 7)):
            read = read_or_refusal(lambda: SoftLabels.open(path))
        assert isinstance(read, str) or read.record == reference


@pytest.mark.parametrize("data", [b"", b"\0" * 69, b"\0" * 71])
def test_a_view_of_another_size_is_refused(path, data):
    (path / "c/1/0/0").write_bytes(data)
    with pytest.raises(ArtefactMismatch, match=rf"has {len(data)} bytes \(expected 70\)"):
        SoftLabels.open(path)


def test_a_missing_view_is_refused(path):
    (path / "c/2/0/0").unlink()
    with pytest.raises(ArtefactNotFound, match="is missing"):
        SoftLabels.open(path)


def test_a_view_less_in_the_record_is_refused(path):
    record = path / "soft_labels.json"
    value = json.loads(record.read_text())
    value["sha256"].pop()
    value["shape"][0] = 2
    record.write_text(json.dumps(value))
    with pytest.raises(ArtefactMismatch, match=r"tells of 2 views and 2 digests \(expected 3"):
        SoftLabels.open(path)


def test_labels_that_were_not_finished_are_none(tmp_path):
    def stopped():
        yield rows()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.soft", identity=identity_of(), views=stopped(), shape=SHAPE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtefactNotFound, match="heartcut select"):
        SoftLabels.open(tmp_path / "a.soft")
