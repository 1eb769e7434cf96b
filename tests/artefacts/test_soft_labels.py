"""Soft labels, dense and packed: round trip, two ways to read them, damage refused."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.artefacts.soft_labels import (
    HeadQuality,
    RepairIdentity,
    RepairReport,
    SoftLabelIdentity,
    SoftLabels,
    write,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.methods.sparse_labels import packed_width
from tests.support.cases import looped
from tests.support.workspaces import edited, flipped, read_or_refusal

NUM_VIEWS, NUM_SAMPLES, NUM_CLASSES = 3, 7, 5
TOP_K = {"dense": 0, "packed": 2}

REPAIR = RepairIdentity(folds=5, seed=0, held_out="e" * 64)
REPORT = RepairReport(
    before=HeadQuality(accuracy=0.5, loss=1.5, calibration_error=0.125, num_wrong=9),
    after=HeadQuality(accuracy=0.75, loss=1.1, calibration_error=0.03, num_wrong=4),
    num_held_out=(3, 2),
    l2=1e-3,
    tried=[(1e-2, 1.25), (1e-3, 1.0)],
    folds=5,
    seed=0,
    gradient_norm=3e-11,
    weights="f" * 64,
)


def identity_of(**changes) -> SoftLabelIdentity:
    fields = {
        "cache": "a" * 64,
        "root": "c" * 64,
        "rows": "d" * 64,
        "view_spec": {"padding": 1, "flip": False, "count": 3, "seed": 0},
        "revision": "wrong",
        "eta": 0.8,
        "temperature": 4.0,
        "revise_at": 4.0,
        "views": (1, 2, 3),
        "top_k": 0,
    }
    return SoftLabelIdentity.model_validate(fields | changes)


def rows(layout: str = "dense") -> np.ndarray:
    """Any 16 bits are a packed row here: the format does not look into it."""
    rng = np.random.default_rng(0)
    if layout == "packed":
        shape = (NUM_VIEWS, NUM_SAMPLES, packed_width(TOP_K[layout]))
        return rng.integers(0, 2**16, shape, dtype=np.uint16)
    drawn = rng.dirichlet(np.ones(NUM_CLASSES), (NUM_VIEWS, NUM_SAMPLES))
    return drawn.astype(np.float16)


def blocks(view: np.ndarray, *sizes: int) -> Iterator[np.ndarray]:
    """A view cut into blocks."""
    yield from np.split(view, np.cumsum(sizes))


def write_rows(path: Path, layout: str = "dense", **changes) -> Path:
    settings = {
        "identity": identity_of(top_k=TOP_K[layout]),
        "views": (blocks(view, 3, 1) for view in rows(layout)),
        "size": (NUM_SAMPLES, NUM_CLASSES),
    }
    write(path, **settings | changes)
    return path


@pytest.fixture(params=["dense", "packed"])
def layout(request) -> str:
    return request.param


@pytest.fixture
def path(tmp_path: Path, layout: str) -> Path:
    return write_rows(tmp_path / "a.soft", layout)


def test_what_is_read_is_what_was_written(path, layout):
    soft = SoftLabels.open(path)
    identity = identity_of(top_k=TOP_K[layout])
    assert (soft.record.identity, soft.id) == (identity, identity.id)
    assert (soft.num_classes, soft.top_k) == (NUM_CLASSES, TOP_K[layout])
    assert {view.dtype for view in soft.views()} == {rows(layout).dtype}
    assert np.array_equal(np.stack(soft.views()), rows(layout))


def test_memory_maps_equal_what_any_zarr_reader_sees(path, layout):
    array = zarr.open_array(path, mode="r")
    assert array.dtype == {"dense": np.float16, "packed": np.uint16}[layout]
    assert np.array_equal(np.stack(SoftLabels.open(path).views()), array[:])
    last = {"dense": "class", "packed": "packed"}[layout]
    assert array.metadata.dimension_names == ("view", "sample", last)


def test_the_files_are_the_numbers_and_nothing_else(path, layout):
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == {"soft_labels.json", "zarr.json", "c/0/0/0", "c/1/0/0", "c/2/0/0"}
    for slot, view in enumerate(rows(layout)):
        stored = (path / f"c/{slot}/0/0").read_bytes()
        assert stored == view.astype(view.dtype.newbyteorder("<")).tobytes()
        digest = SoftLabels.open(path).record.sha256[slot]
        assert digest == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1, 1, 1, 1), (0, 6, 0)])
def test_how_views_are_cut_into_blocks_changes_nothing(tmp_path, layout, sizes):
    whole = write_rows(tmp_path / "whole", layout, views=([view] for view in rows(layout)))
    cut = (blocks(view, *sizes) for view in rows(layout))
    other = write_rows(tmp_path / "cut", layout, views=cut)
    for file in whole.rglob("*"):
        twin = other / file.relative_to(whole)
        assert twin.is_dir() if file.is_dir() else twin.read_bytes() == file.read_bytes()


def test_blocks_need_not_be_contiguous(tmp_path):
    turned = (np.asfortranarray(view) for view in rows())
    path = write_rows(tmp_path / "a", views=([view[::1]] for view in turned))
    assert np.array_equal(np.stack(SoftLabels.open(path).views()), rows())


def test_views_are_mapped_and_not_loaded(path):
    assert all(isinstance(view, np.memmap) for view in SoftLabels.open(path).views())


def test_only_labels_of_the_clean_view_serve_every_view(tmp_path):
    clean = identity_of(views=(0,))
    path = write_rows(tmp_path / "c", identity=clean, views=[[rows()[0]]])
    assert not SoftLabels.open(path).by_view


def test_labels_of_cached_views_belong_to_them(path):
    assert SoftLabels.open(path).by_view


@looped(
    "change",
    [
        {"cache": "b" * 64},
        {"root": "b" * 64},
        {"rows": "b" * 64},
        {"accepted": ("pixels",)},
        {"view_spec": {"padding": 1, "flip": True, "count": 3, "seed": 0}},
        {"revision": "all"},
        {"eta": 0.7},
        {"temperature": 2.0},
        {"revise_at": 1.0},
        {"views": (0,)},
        {"top_k": 2},
        {"standardise": True},
        {"repair": REPAIR},
    ],
)
def test_every_field_of_the_identity_changes_the_id(change):
    assert identity_of(**change).id != identity_of().id
    assert len(SoftLabelIdentity.model_fields) == 13


@looped("change", [{"folds": 4}, {"seed": 1}, {"held_out": "b" * 64}])
def test_every_setting_of_a_repair_changes_the_id(change):
    other = identity_of(repair=REPAIR.model_copy(update=change))
    assert other.id != identity_of(repair=REPAIR).id
    assert RepairIdentity.model_fields.keys() == {"kind", "folds", "seed", "held_out"}


def test_a_flipped_byte_in_any_view_is_rejected(path):
    for stored in path.glob("c/*/0/0"):
        for offset in range(stored.stat().st_size):
            with flipped(stored, offset), pytest.raises(ArtefactMismatch, match="is damaged"):
                SoftLabels.open(path)


def test_the_effect_of_a_repair_is_recorded(tmp_path, layout):
    identity = identity_of(top_k=TOP_K[layout], repair=REPAIR)
    path = write_rows(tmp_path / "a.soft", layout, identity=identity, repaired=REPORT)
    record = SoftLabels.open(path).record
    assert (record.identity.repair, record.repaired) == (REPAIR, REPORT)


@pytest.mark.parametrize("given", [{"repaired": REPORT}, {"identity": identity_of(repair=REPAIR)}])
def test_a_repair_without_its_report_is_not_written(tmp_path, given):
    with pytest.raises(AssertionError, match="a repair has a report"):
        write_rows(tmp_path / "a.soft", **given)
    assert not list(tmp_path.iterdir())


def test_a_repair_without_its_report_is_rejected(tmp_path):
    path = write_rows(tmp_path / "a.soft", identity=identity_of(repair=REPAIR), repaired=REPORT)
    record = path / "soft_labels.json"
    with edited(record) as value:
        del value["repaired"]
    with pytest.raises(ArtefactMismatch, match=r"repair .*not in both"):
        SoftLabels.open(path)


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_another_version_is_rejected_in_one_line(path, version):
    record = path / "soft_labels.json"
    with edited(record) as value:
        value["version"] = version
    with pytest.raises(
        ArtefactMismatch,
        match=r"^\S+soft_labels.json does not follow its format: version: Input should be 4. "
        r"Remove \S+a.soft and run `heartcut select` again.$",
    ):
        SoftLabels.open(path)


def test_a_version_without_repairs_is_rejected_in_one_line(path):
    """As version 2 wrote it: neither the identity nor the record has a repair."""
    record = path / "soft_labels.json"
    with edited(record) as value:
        value["version"] = 2
        del value["repaired"], value["identity"]["repair"]
    with pytest.raises(ArtefactMismatch, match=r"version: Input should be 4"):
        SoftLabels.open(path)


def assert_no_bit_is_changed_unseen(path: Path) -> None:
    reference = SoftLabels.open(path).record
    record = path / "soft_labels.json"
    for offset in range(record.stat().st_size):
        with flipped(record, offset, mask=1 << (offset % 7)):
            read = read_or_refusal(lambda: SoftLabels.open(path))
        assert isinstance(read, str) or read.record == reference


def test_a_changed_bit_in_the_record_is_rejected_or_harmless(path):
    assert_no_bit_is_changed_unseen(path)


def test_a_changed_bit_in_the_report_of_a_repair_is_rejected_or_harmless(tmp_path):
    identity = identity_of(repair=REPAIR)
    path = write_rows(tmp_path / "a.soft", identity=identity, repaired=REPORT)
    assert_no_bit_is_changed_unseen(path)


@pytest.mark.parametrize("change", [-1, 1, None])
def test_a_view_of_another_size_is_rejected(path, change):
    file = path / "c/1/0/0"
    expected = file.stat().st_size
    data = b"" if change is None else bytes(expected + change)
    file.write_bytes(data)
    with pytest.raises(ArtefactMismatch, match=rf"{len(data)} bytes .*{expected}"):
        SoftLabels.open(path)


def test_a_missing_view_is_rejected(path):
    (path / "c/2/0/0").unlink()
    with pytest.raises(ArtefactNotFound, match="is missing"):
        SoftLabels.open(path)


def test_a_view_less_in_the_record_is_rejected(path):
    record = path / "soft_labels.json"
    with edited(record) as value:
        value["sha256"].pop()
        value["shape"][0] = 2
    with pytest.raises(ArtefactMismatch, match=r"2 views .*2 digests .*3"):
        SoftLabels.open(path)


@pytest.mark.parametrize("change", [{"num_classes": 6}, {"shape": [3, 5, 7]}])
def test_a_record_of_another_layout_is_rejected(path, change):
    record = path / "soft_labels.json"
    with edited(record) as value:
        value |= change
    with pytest.raises(ArtefactMismatch, match=r"soft_labels.json is damaged: content"):
        SoftLabels.open(path)


@pytest.mark.parametrize(
    ("found", "other"),
    [("little", "big"), ('"shape": [', '"shape": [\n    1,'), ('"attributes"', '"attribute"')],
)
def test_a_description_for_other_readers_that_was_changed_is_rejected(path, found, other):
    description = path / "zarr.json"
    text = description.read_text()
    assert found in text
    description.write_text(text.replace(found, other))
    with pytest.raises(ArtefactMismatch, match=r"zarr\.json describes other labels than") as caught:
        SoftLabels.open(path)
    assert "\n" not in str(caught.value)


def test_a_missing_description_is_reported(path):
    (path / "zarr.json").unlink()
    with pytest.raises(ArtefactNotFound, match=r"zarr\.json does not exist"):
        SoftLabels.open(path)


@pytest.mark.parametrize("stop", range(NUM_VIEWS * 3 + 1))
def test_an_interrupted_write_leaves_nothing(tmp_path, layout, stop):
    num_given = 0

    def stopped(view):
        nonlocal num_given
        for block in blocks(view, 3, 1):
            if num_given == stop:
                raise KeyboardInterrupt
            num_given += 1
            yield block
        if num_given == stop == NUM_VIEWS * 3:
            raise KeyboardInterrupt

    views = (stopped(view) for view in rows(layout))
    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "a.soft", layout, views=views)
    assert num_given == stop
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtefactNotFound, match="heartcut select"):
        SoftLabels.open(tmp_path / "a.soft")


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (rows()[:2, None], r"2 views .*3"),
        ([*rows()[:, None], rows()[:1]], r"4 views .*3"),
        (rows()[:, None, :6], r"6 rows .*7"),
        ([[view, view[:1]] for view in rows()], r"8 rows .*7"),
        (rows()[:, None, :, :4], "a block of other rows"),
        (rows("packed")[:, None], "a block of other rows"),
        (rows()[:, None].astype(np.float32), "a block of other rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_are_not_those_announced_are_not_published(tmp_path, views, message):
    with pytest.raises(AssertionError, match=message):
        write_rows(tmp_path / "a.soft", views=views)
    assert not list(tmp_path.iterdir())
