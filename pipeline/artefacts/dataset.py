"""The data set: two betons and what they hold.

    <folder>/
        train.beton                fields image (RGB: pixels or a JPEG), label (int), index (int)
        eval.beton                 the same for the test split
        train.samples.safetensors  keys (N, 16) uint8, labels (N,) int64, pixels (N, 16) uint8
        eval.samples.safetensors   the same for the test split
        dataset.json               written last: describes the files above

A sample index is a position in a beton; a sample key is its content (`provenance.sample_key`).
By default samples are sorted by (key, label), so the same images give the same beton on any
machine. Artefacts are joined by key. The fingerprint hashes the sorted (key, label) pairs; the
pixel digest hashes the sorted (key, hash of decoded pixels) pairs, so it differs between decoders
that disagree. Both are independent of the order, so another team's beton in another order has the
same ones.

Held-out rows (V) are in train.beton; they are chosen class by class by a hash of (seed, key), so
all teams hold out the same images and equal images are on the same side.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pipeline.artefacts import records
from pipeline.artefacts.preparation import Finding, Preprocessing
from pipeline.artefacts.publishing import publish_json
from pipeline.artefacts.records import Record
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import array_sha256, file_sha256, identity, large_file_sha256, short

FORMAT_VERSION: Final = 3
MADE_BY = "heartcut prepare"
IMAGE, LABEL, INDEX = "image", "label", "index"
"""Field names inside a beton."""
_ID_VERSION = 2
"""Version of the inputs of an id; it does not change with the format of dataset.json."""


class FileRecord(Record):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class SplitRecord(Record):
    """One split in dataset.json."""

    num_samples: int
    class_counts: list[int]
    fingerprint: str
    pixel_digest: str
    samples: str
    """Hash of keys, labels and pixel hashes in the order of the beton."""
    beton: FileRecord


class DatasetRecord(Record):
    """dataset.json."""

    format: str = "heartcut.dataset"
    version: Literal[3] = FORMAT_VERSION
    id: str
    """Identity: fingerprints, pixel digests, class names, held-out rows."""
    request: str
    """Hash of the settings and of the source that it was made from."""
    source: str
    class_names: list[str]
    heights: tuple[int, int]
    widths: tuple[int, int]
    """Smallest and largest value, in pixels."""
    num_jpegs: int
    """Images of both betons that are stored as JPEGs; the others are stored as pixels."""
    decoder: str
    """Decoder of the source's files."""
    mean: tuple[float, float, float]
    """Mean of the training rows per channel, in units of pixel / 255."""
    std: tuple[float, float, float]
    held_out: list[int]
    """Sample indices of train.beton that are never trained on."""
    held_out_seed: int
    train: SplitRecord
    eval: SplitRecord
    skipped: list[str]
    """Source files left out by --skip-corrupt."""
    left_out: tuple[Finding, ...] = ()
    """Files and folders of the source that are not images or not of a class, by reason."""
    notes: tuple[Finding, ...] = ()
    """Images that are unusual, by what is unusual about them, such as copies."""
    preprocessing: Preprocessing | None = None
    """None if it was not recorded, as by earlier releases."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of all images; None where they differ."""
        if self.heights[0] < self.heights[1] or self.widths[0] < self.widths[1]:
            return None
        return self.heights[0], self.widths[0]

    @model_validator(mode="before")
    @classmethod
    def _read_version_2(cls, stored: object) -> object:
        """Convert a record of version 2, in which all images had one size and were raw pixels."""
        if not isinstance(stored, dict) or stored.get("version") != 2:
            return stored
        height, width = stored.get("image_size") or (None, None)
        rest = {name: value for name, value in stored.items() if name != "image_size"}
        sizes = {"heights": [height, height], "widths": [width, width]}
        return {**rest, **sizes, "num_jpegs": 0, "version": FORMAT_VERSION}


def read_record(folder: Path) -> DatasetRecord:
    """dataset.json, checked against its schema."""
    remedy = f"Remove {folder} and run `{MADE_BY}` again."
    return records.read_record(
        DatasetRecord, folder / "dataset.json", made_by=MADE_BY, remedy=remedy
    )


def write_record(folder: Path, record: DatasetRecord) -> None:
    """Write dataset.json and the digest of its contents."""
    publish_json(folder / "dataset.json", record.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Keys, labels and pixel hashes of a split; row i describes sample index i."""

    keys: NDArray[np.uint8]
    """Hash of the image's content, (N, 16)."""
    labels: NDArray[np.int64]
    """Class ids, (N,)."""
    pixels: NDArray[np.uint8]
    """Hash of the decoded pixels, (N, 16)."""

    def __post_init__(self) -> None:
        rows = (len(self.labels), 16)
        if self.keys.shape != rows or self.pixels.shape != rows:
            raise ValueError(
                f"keys {self.keys.shape} and pixels {self.pixels.shape} must be of shape {rows}"
            )
        if (self.labels != self.labels.astype(np.int32)).any():  # the fingerprint has 32 bits
            raise ValueError("labels must fit 32 bits")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Hash over the sorted (key, label) pairs."""
        labels = self.labels.astype("<i4").view(np.uint8).reshape(len(self), 4)
        return _sorted_rows_sha256("fingerprint", np.concatenate([self.keys, labels], axis=1))

    @property
    def pixel_digest(self) -> str:
        """Hash over the sorted (key, decoded pixels) pairs."""
        return _sorted_rows_sha256("pixels", np.concatenate([self.keys, self.pixels], axis=1))

    @property
    def in_order(self) -> str:
        """Hash over the samples in the order of their indices."""
        labels = self.labels.astype("<i4").view(np.uint8).reshape(len(self), 4)
        return array_sha256(np.concatenate([self.keys, labels, self.pixels], axis=1))

    def canonical_order(self) -> NDArray[np.int64]:
        """Positions sorted by (key, label)."""
        words = np.ascontiguousarray(self.keys).view(">u8")
        return np.lexsort((self.labels, words[:, 1], words[:, 0]))

    def rows(self, order: NDArray[np.int64]) -> "Samples":
        """The samples at ``order``."""
        return Samples(keys=self.keys[order], labels=self.labels[order], pixels=self.pixels[order])


def stratified_rows(
    samples: Samples, *, fraction: float, seed: int, purpose: str
) -> NDArray[np.int64]:
    """Rows that make up ``fraction`` of every class, chosen by a hash of (purpose, seed, key).

    Equal images have equal hashes, so they are chosen together as far as the count allows.

    Returns:
        Sorted sample indices, int64; of every class round(fraction * size), at least one.
    """
    salt = f"{purpose};{seed};".encode()
    rank = np.array(
        [hashlib.blake2b(salt + key.tobytes(), digest_size=8).digest() for key in samples.keys],
        dtype="S8",
    ).view(">u8")
    chosen = []
    for label in np.unique(samples.labels):
        rows = np.flatnonzero(samples.labels == label)
        take = max(1, round(fraction * len(rows)))
        chosen.append(rows[np.argsort(rank[rows], kind="stable")[:take]])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True, kw_only=True)
class Beton:
    """One split, open for reading: the file and its samples."""

    path: Path
    samples: Samples
    record: SplitRecord

    @property
    def num_samples(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A complete data set, open for reading."""

    folder: Path
    record: DatasetRecord
    train: Beton
    eval: Beton

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a data set; every byte of its betons is checked against dataset.json.

        A beton has no checksum of its own: a flipped bit or a short file would read as wrong
        numbers without any error. A process checks a beton of 1 GiB or more once.

        Raises:
            ArtefactNotFound: if it was not prepared.
            ArtefactMismatch: if a file is damaged.
        """
        record = read_record(folder)
        train = _open_split(folder, "train", record.train)
        test = _open_split(folder, "eval", record.eval)
        held_out = np.array(
            [row for row in record.held_out if row in range(len(train.samples))], dtype=np.int64
        )
        found = dataset_id(
            train.samples, test.samples, class_names=record.class_names, held_out=held_out
        )
        if found != record.id:
            raise ArtefactMismatch(
                f"{folder / 'dataset.json'} was changed: its classes and held-out rows make data "
                f"set {short(found)} (expected {short(record.id)}). "
                f"Remove {folder} and run `{MADE_BY}` again."
            )
        return cls(folder=folder, record=record, train=train, eval=test)

    @property
    def num_classes(self) -> int:
        return len(self.record.class_names)

    @property
    def held_out(self) -> NDArray[np.int64]:
        """Sorted sample indices of the held-out rows (V)."""
        return np.array(self.record.held_out, dtype=np.int64)

    @property
    def training(self) -> NDArray[np.int64]:
        """Sorted sample indices of the rows that are trained on (T)."""
        return np.setdiff1d(np.arange(self.train.num_samples), self.held_out)

    @property
    def held_out_digest(self) -> str:
        """Hash of the held-out samples' keys."""
        return held_out_digest(self.train.samples, self.held_out)


def beton_path(folder: Path, split: str) -> Path:
    """Path of the beton of a split."""
    return folder / f"{split}.beton"


def write_samples(folder: Path, split: str, samples: Samples) -> None:
    """Write the samples file of a split."""
    arrays = {"keys": samples.keys, "labels": samples.labels, "pixels": samples.pixels}
    # Not save_file, which raises SafetensorError instead of OSError if the disk is full.
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    _samples_path(folder, split).write_bytes(data)


def split_record(folder: Path, split: str, samples: Samples, *, num_classes: int) -> SplitRecord:
    """Describe the files of a split that were just written."""
    path = beton_path(folder, split)
    return SplitRecord(
        num_samples=len(samples),
        class_counts=np.bincount(samples.labels, minlength=num_classes).tolist(),
        fingerprint=samples.fingerprint,
        pixel_digest=samples.pixel_digest,
        samples=samples.in_order,
        beton=FileRecord(bytes=path.stat().st_size, sha256=file_sha256(path)),
    )


def dataset_id(
    train: Samples, test: Samples, *, class_names: Sequence[str], held_out: NDArray[np.int64]
) -> str:
    """Identity of a data set: a hash of its content, the same on any machine."""
    return identity(
        "dataset",
        {
            "version": _ID_VERSION,
            "train": [train.fingerprint, train.pixel_digest],
            "eval": [test.fingerprint, test.pixel_digest],
            "class_names": list(class_names),
            "held_out": held_out_digest(train, held_out),
        },
    )


def held_out_digest(train: Samples, held_out: NDArray[np.int64]) -> str:
    """Hash of the held-out samples' keys, independent of their order."""
    keys = train.keys[held_out]
    return array_sha256(keys[np.lexsort(keys.T[::-1])])


def _samples_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.samples.safetensors"


def open_samples(folder: Path, split: str, record: SplitRecord) -> Samples:
    """Read and check the samples of a split, without reading its beton, which can be large."""
    path = _samples_path(folder, split)
    samples = _read_samples(path)
    if samples.in_order != record.samples:
        raise ArtefactMismatch(
            f"{path} does not belong to {beton_path(folder, split)}: its rows hash to "
            f"{short(samples.in_order)} (expected {short(record.samples)}). "
            f"Remove {folder} and run `{MADE_BY}` again."
        )
    counts = np.bincount(samples.labels, minlength=len(record.class_counts)).tolist()
    if (len(samples), counts) != (record.num_samples, record.class_counts):
        raise ArtefactMismatch(
            f"{folder / 'dataset.json'} counts {record.num_samples:,} samples of {split}.beton, by "
            f"class {_few(record.class_counts)} (expected {len(samples):,}, by class "
            f"{_few(counts)}). Remove {folder} and run `{MADE_BY}` again."
        )
    return samples


def _few(counts: Sequence[int]) -> str:
    """The first counts, for a message."""
    shown = ", ".join(str(count) for count in counts[:4])
    return f"{shown}, ..." if len(counts) > 4 else shown


def _open_split(folder: Path, split: str, record: SplitRecord) -> Beton:
    path = beton_path(folder, split)
    _check_beton(path, record.beton)
    return Beton(path=path, samples=open_samples(folder, split, record), record=record)


def _check_beton(path: Path, expected: FileRecord) -> None:
    remedy = f"It is damaged: remove {path.parent} and run `{MADE_BY}` again."
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} is missing. Run `{MADE_BY}` again.") from error
    if found_bytes != expected.bytes:
        raise ArtefactMismatch(
            f"{path} has {found_bytes:,} bytes (expected {expected.bytes:,}). {remedy}"
        )
    found = large_file_sha256(path)
    if found != expected.sha256:
        raise ArtefactMismatch(
            f"{path} has other contents than were written: sha256 {short(found)} "
            f"(expected {short(expected.sha256)}). {remedy}"
        )


def _read_samples(path: Path) -> Samples:
    try:
        arrays = load_file(path)
        samples = Samples(keys=arrays["keys"], labels=arrays["labels"], pixels=arrays["pixels"])
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} is missing. Run `{MADE_BY}` again.") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtefactMismatch(
            f"{path} is damaged: {error}. Remove {path.parent} and run `{MADE_BY}` again."
        ) from error
    return samples


def _sorted_rows_sha256(purpose: str, rows: NDArray[np.uint8]) -> str:
    ordered = np.sort(np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel())
    digest = hashlib.sha256(f"heartcut.{purpose};{len(rows)};".encode())
    digest.update(ordered.tobytes())
    return digest.hexdigest()
