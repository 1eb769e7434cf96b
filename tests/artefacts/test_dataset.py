import hashlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pipeline import provenance
from pipeline.artefacts import dataset as module
from pipeline.artefacts.dataset import (
    Dataset,
    Samples,
    dataset_id,
    held_out_digest,
    stratified_rows,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import file_sha256
from tests.support.image_folders import folder_config
from tests.support.workspaces import edited, flip_byte


def new_samples(count, *, seed=0, num_classes=3):
    rng = np.random.default_rng(seed)
    return Samples(
        keys=rng.integers(0, 256, (count, 16), dtype=np.uint8),
        labels=rng.integers(0, num_classes, count),
        pixels=rng.integers(0, 256, (count, 16), dtype=np.uint8),
    )


byte_rows = st.integers(1, 24).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0, 1, 127, 128, 200, 255]), min_size=width, max_size=width),
        min_size=1,
        max_size=40,
    )
)


@given(rows=byte_rows)
def test_rows_are_hashed_in_bytewise_order(rows):
    ordered = b"".join(sorted(bytes(row) for row in rows))
    expected = hashlib.sha256(f"heartcut.x;{len(rows)};".encode() + ordered).hexdigest()
    assert module._sorted_rows_sha256("x", np.array(rows, dtype=np.uint8)) == expected


@given(seed=st.integers(0, 50), count=st.integers(1, 40))
def test_fingerprint_and_pixel_digest_do_not_depend_on_the_order(seed, count):
    samples = new_samples(count, seed=seed)
    turned = samples.rows(np.random.default_rng(seed).permutation(count))
    assert turned.fingerprint == samples.fingerprint
    assert turned.pixel_digest == samples.pixel_digest
    assert np.array_equal(
        turned.rows(turned.canonical_order()).keys, samples.rows(samples.canonical_order()).keys
    )


@given(seed=st.integers(0, 50), count=st.integers(1, 40), share=st.floats(0, 1))
def test_held_out_digest_and_id_do_not_depend_on_the_order(seed, count, share):
    samples, rng = new_samples(count, seed=seed), np.random.default_rng(seed)
    order = rng.permutation(count)
    held_out = np.flatnonzero(rng.random(count) < share)
    turned, moved = samples.rows(order), np.sort(np.argsort(order)[held_out])
    assert held_out_digest(turned, moved) == held_out_digest(samples, held_out)
    assert dataset_id(
        turned, new_samples(9), class_names=["a", "b", "c"], held_out=moved
    ) == dataset_id(samples, new_samples(9), class_names=["a", "b", "c"], held_out=held_out)


def test_held_out_digest_depends_on_which_images_are_held_out():
    samples = new_samples(20)
    rows = [[0, 1], [0, 2], [0], [0, 1, 2], []]
    digests = {held_out_digest(samples, np.array(some, dtype=np.int64)) for some in rows}
    assert len(digests) == len(rows)


def test_held_out_rows_are_the_same_images_in_any_order():
    samples = new_samples(90)
    turned = samples.rows(np.random.default_rng(0).permutation(90))
    settings = {"fraction": 0.2, "seed": 0, "purpose": "x"}
    first = stratified_rows(samples, **settings)
    second = stratified_rows(turned, **settings)
    assert not np.array_equal(first, second)
    assert held_out_digest(samples, first) == held_out_digest(turned, second)


@pytest.mark.parametrize("field", ["keys", "labels", "pixels"])
def test_fingerprint_covers_keys_and_labels_and_pixel_digest_keys_and_pixels(field):
    samples = new_samples(20)
    changed = {name: getattr(samples, name).copy() for name in ("keys", "labels", "pixels")}
    changed[field].ravel()[3] += 1
    other = Samples(**changed)
    assert (other.fingerprint == samples.fingerprint) is (field == "pixels")
    assert (other.pixel_digest == samples.pixel_digest) is (field == "labels")


def test_two_keys_that_swap_their_labels_are_another_data_set():
    samples = new_samples(20)
    labels = samples.labels.copy()
    first, second = np.flatnonzero(labels != labels[0])[0], 0
    labels[[first, second]] = labels[[second, first]]
    assert Samples(**{**vars(samples), "labels": labels}).fingerprint != samples.fingerprint


@given(seed=st.integers(0, 50))
def test_canonical_order_is_bytewise_by_key_then_label(seed):
    samples = new_samples(30, seed=seed)
    samples.keys[10:20] = samples.keys[:10]
    rows = [(key.tobytes(), label) for key, label in zip(samples.keys, samples.labels, strict=True)]
    order = samples.canonical_order()
    assert [rows[i] for i in order] == sorted(rows)


@given(
    seed=st.integers(0, 30),
    fraction=st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    count=st.integers(20, 200),
)
def test_held_out_rows_are_stratified_sorted_and_keyed_by_content(seed, fraction, count):
    samples = new_samples(count, seed=seed)
    rows = stratified_rows(samples, fraction=fraction, seed=3, purpose="held-out")
    assert np.array_equal(rows, np.unique(rows))
    for label in np.unique(samples.labels):
        size = int((samples.labels == label).sum())
        assert (samples.labels[rows] == label).sum() == max(1, round(fraction * size))
    order = np.random.default_rng(seed).permutation(count)
    turned = stratified_rows(samples.rows(order), fraction=fraction, seed=3, purpose="held-out")
    assert {samples.keys[order[i]].tobytes() for i in turned} == {
        samples.keys[i].tobytes() for i in rows
    }


def test_held_out_rows_of_a_larger_fraction_contain_those_of_a_smaller():
    samples = new_samples(300)
    small, large = (
        set(stratified_rows(samples, fraction=f, seed=3, purpose="x").tolist()) for f in (0.1, 0.4)
    )
    assert small < large


@pytest.mark.parametrize(("seed", "purpose"), [(4, "held-out"), (3, "test")])
def test_another_seed_or_purpose_holds_out_other_rows(seed, purpose):
    samples = new_samples(300)
    rows = stratified_rows(samples, fraction=0.3, seed=3, purpose="held-out")
    others = stratified_rows(samples, fraction=0.3, seed=seed, purpose=purpose)
    assert len(np.intersect1d(rows, others)) < 0.6 * len(rows)


def test_held_out_rows_are_those_of_the_first_release():
    keys = [hashlib.blake2b(bytes([i]), digest_size=16).digest() for i in range(40)]
    samples = Samples(
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(40, 16),
        labels=np.arange(40) % 2,
        pixels=np.zeros((40, 16), dtype=np.uint8),
    )
    rows = stratified_rows(samples, fraction=0.2, seed=0, purpose="held-out")
    expected = []
    for label in (0, 1):
        rank = {
            i: hashlib.blake2b(b"held-out;0;" + keys[i], digest_size=8).digest()
            for i in range(label, 40, 2)
        }
        expected += sorted(rank, key=rank.__getitem__)[:4]
    assert rows.tolist() == sorted(expected)


def test_samples_of_other_shapes_are_rejected():
    samples = new_samples(4)
    with pytest.raises(ValueError, match=r"must be of shape \(4, 16\)"):
        Samples(keys=samples.keys[:3], labels=samples.labels, pixels=samples.pixels)


@pytest.fixture
def copy(prepared, tmp_path):
    """A data set that a test may damage."""
    return shutil.copytree(prepared.folder, tmp_path / "data")


def assert_rejected(folder, kind, pattern, *parts):
    with pytest.raises(kind, match=pattern) as caught:
        Dataset.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "heartcut prepare" in message
    for part in parts:
        assert part in message


def test_a_data_set_opens_as_it_was_written(prepared, copy):
    opened = Dataset.open(copy)
    assert opened.record == prepared.record
    assert np.array_equal(opened.train.samples.keys, prepared.train.samples.keys)
    assert np.array_equal(np.union1d(opened.held_out, opened.training), np.arange(74))
    assert not np.intersect1d(opened.held_out, opened.training).size
    assert (opened.num_classes, opened.train.num_samples, opened.eval.num_samples) == (3, 74, 9)
    assert opened.held_out_digest == prepared.held_out_digest


def test_a_data_set_in_another_order_opens_and_is_the_same_one(prepared, image_root, tmp_path):
    from stages import prepare

    turned = prepare.execute(folder_config(tmp_path, image_root, order="source"))
    assert not np.array_equal(turned.train.samples.keys, prepared.train.samples.keys)
    assert (turned.record.id, turned.held_out_digest) == (
        prepared.record.id,
        prepared.held_out_digest,
    )
    for split in ("train", "eval"):
        ours, theirs = getattr(turned, split).samples, getattr(prepared, split).samples
        ours, theirs = (some.rows(some.canonical_order()) for some in (ours, theirs))
        assert np.array_equal(ours.keys, theirs.keys)
        assert np.array_equal(ours.labels, theirs.labels)
    held_out = {key.tobytes() for key in turned.train.samples.keys[turned.held_out]}
    assert held_out == {key.tobytes() for key in prepared.train.samples.keys[prepared.held_out]}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_flipped_bit_anywhere_in_a_beton_is_rejected(copy, split):
    path = copy / f"{split}.beton"
    size = path.stat().st_size
    for position in (0, 9, 100, 5000, size // 2, size - 1):
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 0x10]))
            file.flush()
            assert_rejected(copy, ArtefactMismatch, "other contents than were written", str(path))
            file.seek(position)
            file.write(bytes([byte]))
    Dataset.open(copy)


@pytest.mark.parametrize("missing", [1, 7000, 9 << 20, None])
def test_a_truncated_beton_is_rejected(copy, missing):
    path = copy / "train.beton"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(0 if missing is None else size - missing)
    left = 0 if missing is None else size - missing
    assert_rejected(copy, ArtefactMismatch, f"has {left:,} bytes", f"expected {size:,}", str(path))


def test_a_beton_that_grew_is_rejected(copy):
    with (copy / "eval.beton").open("ab") as file:
        file.write(b"\0")
    assert_rejected(copy, ArtefactMismatch, "damaged", "eval.beton")


@pytest.mark.parametrize(
    "name",
    [
        "train.beton",
        "eval.beton",
        "train.samples.safetensors",
        "eval.samples.safetensors",
        "dataset.json",
    ],
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert_rejected(copy, ArtefactNotFound, name)


def test_a_damaged_byte_anywhere_in_a_samples_file_is_rejected(copy):
    path = copy / "eval.samples.safetensors"
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        if 8 + int.from_bytes(content[:8], "little") > position and content[position] == 0x20:
            continue  # padding of the header means nothing
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(ArtefactMismatch) as caught:
            module._open_split(copy, "eval", module.read_record(copy).eval)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 8, 60, 400])
def test_a_truncated_samples_file_is_rejected(copy, keep):
    path = copy / "train.samples.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_rejected(copy, ArtefactMismatch, "is damaged", str(path))


def test_samples_of_another_split_are_rejected(copy):
    shutil.copy(copy / "eval.samples.safetensors", copy / "train.samples.safetensors")
    assert_rejected(copy, ArtefactMismatch, "does not belong to", "train.samples.safetensors")


def test_samples_in_another_order_than_the_beton_are_rejected(copy):
    path = copy / "train.samples.safetensors"
    save_file({name: rows[::-1].copy() for name, rows in load_file(path).items()}, path)
    assert_rejected(copy, ArtefactMismatch, "does not belong to .*: its rows hash to", str(copy))


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("version", "two", "dataset.json does not follow its format: version"),
        ("unknown", 1, "dataset.json does not follow its format: unknown"),
        ("held_out", [0, 1], "was changed"),
        ("held_out", [5000], "was changed"),
        ("class_names", ["a", "b", "c"], "was changed"),
    ],
)
def test_a_record_that_was_edited_is_rejected(copy, key, value, pattern):
    path = copy / "dataset.json"
    with edited(path) as record:
        record[key] = value
    assert_rejected(copy, ArtefactMismatch, pattern, str(path))


def test_a_record_without_a_key_is_rejected(copy):
    path = copy / "dataset.json"
    with edited(path) as record:
        del record["train"]["beton"]
    assert_rejected(copy, ArtefactMismatch, r"train\.beton: Field required", str(path))


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("field", ["num_samples", "class_counts"])
def test_counts_that_are_not_those_of_the_samples_are_rejected(copy, split, field):
    path = copy / "dataset.json"
    with edited(path) as record:
        if field == "num_samples":
            record[split][field] += 1
        else:
            record[split][field][0] += 1
    assert_rejected(copy, ArtefactMismatch, rf"counts .* samples of {split}.beton", str(path))


def test_a_mean_that_was_edited_on_purpose_is_used(copy):
    with edited(copy / "dataset.json") as record:
        record["mean"] = [0.5, 0.5, 0.5]
    assert Dataset.open(copy).record.mean == (0.5, 0.5, 0.5)


def test_a_large_beton_is_hashed_once_in_a_process_and_again_when_it_changed(copy, monkeypatch):
    hashed = []

    def counted(path):
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(provenance, "file_sha256", counted)
    monkeypatch.setattr(provenance, "LARGE_BYTES", 1 << 20)
    for _ in range(3):
        Dataset.open(copy)
    assert hashed == ["train.beton", "eval.beton"]
    flip_byte(copy / "train.beton", -1)
    with pytest.raises(ArtefactMismatch, match="has other contents than were written"):
        Dataset.open(copy)
    assert hashed == ["train.beton", "eval.beton", "train.beton"]
