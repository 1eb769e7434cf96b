"""Soft labels: the teacher's distributions after revision, and the record of a repaired teacher.

    <id>.soft/
        soft_labels.json   written last: identity, shape, digests
        zarr.json          with c/...: an uncompressed Zarr v3 array (V, N, W) whose chunk is one
        c/<v>/0/0          view, so each view is also one flat file for `numpy.memmap`

Slot v holds the labels of view ``views[v]``, in the order of the beton. Rows are probabilities at
`temperature`, revised in float32 and stored in 16 bits, little-endian:

    top_k = 0    dense     W = C        float16
    top_k = K    packed    W = 2 K + 3  uint16: K + 1 class ids; the bits of K + 1 float16
                                        probabilities; those of the mass of all other classes
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.publishing import Data, publish_json, publishing_folder, read_json
from pipeline.artefacts.records import Record, printable, read_record
from pipeline.artefacts.zarr_arrays import ZARR_JSON
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.methods.catalogue import Revision
from pipeline.methods.sparse_labels import packed_width
from pipeline.provenance import Json, file_sha256, identity, short

FORMAT_VERSION: Final = 4
MADE_BY = "heartcut select"
LabelRows: TypeAlias = NDArray[np.float16] | NDArray[np.uint16]
"""Dense or packed rows, (..., W)."""


class RepairIdentity(Record):
    """Everything that the repaired logits depend on, except the cache and the images' labels."""

    kind: Literal["head"] = "head"
    folds: int
    """Every sample is predicted by a head that was fitted without its fold."""
    seed: int
    """Seed of the folds and of the half of the held-out rows that l2 is chosen on."""
    held_out: str
    """Hash of the held-out samples' keys; no head is fitted to these samples."""


class HeadQuality(Record):
    """Quality of the logits of the clean view."""

    accuracy: float
    """Accuracy on the reported held-out rows; so are the next two fields."""
    loss: float
    """Mean cross-entropy, nats."""
    calibration_error: float
    num_wrong: int
    """Training rows with another class than the label at the top."""


class RepairReport(Record):
    """The teacher's own classifier and the repaired one."""

    before: HeadQuality
    after: HeadQuality
    num_held_out: tuple[int, int]
    """Number of held-out rows that l2 was chosen on, and of the others, which are reported."""
    l2: float
    tried: list[tuple[float, float]]
    """Each l2 with its loss on the held-out rows that l2 was chosen on."""
    folds: int
    seed: int
    gradient_norm: float
    """Largest gradient norm of all heads."""
    weights: str
    """Digest of the heads, (folds + 1, C, D + 1); the last head predicts the held-out rows."""


class SoftLabelIdentity(Record):
    """Everything that the labels depend on."""

    cache: str
    """Id of the teacher cache."""
    root: str
    """Root hash of the cache, over the bytes that were revised."""
    rows: str
    """Digest of the samples (key, label, pixels) in the order of the beton and of the rows."""
    accepted: tuple[str, ...] = ()
    """Mismatches between cache and data set that the user accepted by name."""
    view_spec: dict[str, int | bool | float | str]
    """The views of the cache, so that a student can replay them without it."""
    revision: Revision
    eta: float | None
    """Parameter eta; None if the revision has none."""
    temperature: float
    """The temperature of distillation."""
    revise_at: float
    """The temperature of the teacher's probabilities."""
    standardise: bool = False
    """True if teacher and student are compared by probabilities of standardised logits."""
    views: tuple[int, ...]
    top_k: int
    """Classes listed in a packed row in addition to the label; 0: rows are dense."""
    repair: RepairIdentity | None = None
    """Repair of the teacher's logits before revision; None: no repair."""

    @property
    def id(self) -> str:
        return identity("soft_labels", [FORMAT_VERSION, self.model_dump(mode="json")])


class SoftLabelRecord(Record):
    """soft_labels.json."""

    format: Literal["heartcut.soft_labels"] = "heartcut.soft_labels"
    version: Literal[4] = FORMAT_VERSION
    id: str
    identity: SoftLabelIdentity
    shape: tuple[int, int, int]
    """V, N, W"""
    num_classes: int
    sha256: list[str]
    """SHA-256 of each view's file."""
    repaired: RepairReport | None = None
    """Effect of the repair; None if there was none."""
    content: str
    """Digest of shape, num_classes, sha256 and repaired, which the id does not cover."""

    @property
    def expected_content(self) -> str:
        """`content` as recomputed from the other fields."""
        return _content(self.shape, self.num_classes, self.sha256, self.repaired)


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """Complete soft labels, open for reading."""

    path: Path
    record: SoftLabelRecord

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open soft labels; every byte is checked against soft_labels.json.

        Raises:
            ArtefactNotFound: if they do not exist.
            ArtefactMismatch: if they are damaged.
        """
        record_path = path / "soft_labels.json"
        remedy = f"Remove {path} and run `{MADE_BY}` again."
        record = read_record(SoftLabelRecord, record_path, made_by=MADE_BY, remedy=remedy)
        if record.identity.id != record.id:
            raise ArtefactMismatch(
                f"{path} has an id that does not match its settings: {short(record.id)} (expected "
                f"{short(record.identity.id)}). {remedy}"
            )
        if (record.repaired is None) != (record.identity.repair is None):
            raise ArtefactMismatch(
                f"{record_path} has a repair in its identity or a report of one, but not in both. "
                f"{remedy}"
            )
        num_views = len(record.identity.views)
        if record.shape[0] != num_views or len(record.sha256) != num_views:
            raise ArtefactMismatch(
                f"{record_path} lists {record.shape[0]} views and {len(record.sha256)} digests "
                f"(expected {num_views} each). {remedy}"
            )
        if record.content != record.expected_content:
            raise ArtefactMismatch(
                f"{record_path} is damaged: content {short(record.content)} (expected "
                f"{short(record.expected_content)}). {remedy}"
            )
        _check_description(path, record)
        for slot, expected in enumerate(record.sha256):
            _check_view(_view_path(path, slot), expected, record.shape)
        return cls(path=path, record=record)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def num_classes(self) -> int:
        return self.record.num_classes

    @property
    def top_k(self) -> int:
        """Classes listed in a packed row in addition to the label; 0: rows are dense."""
        return self.record.identity.top_k

    @property
    def by_view(self) -> bool:
        """Slot v belongs to view v + 1; False: one clean-view label serves every view."""
        return self.record.identity.views != (0,)

    def views(self) -> list[LabelRows]:
        """The rows of each view, memory-mapped: (N, C) float16, or packed (N, W) uint16."""
        return [self._view(slot) for slot in range(self.record.shape[0])]

    def _view(self, slot: int) -> LabelRows:
        path, rows = _view_path(self.path, slot), self.record.shape[1:]
        if self.top_k:
            return np.memmap(path, np.uint16, "r", shape=rows)
        return np.memmap(path, np.float16, "r", shape=rows)


def write(
    path: Path,
    *,
    identity: SoftLabelIdentity,
    views: Iterable[Iterable[LabelRows]],
    size: tuple[int, int],
    repaired: RepairReport | None = None,
) -> None:
    """Write the views in order and publish them under ``path`` when all are there.

    Zarr describes the array. Its chunks are written here, block by block: zarr would need a whole
    view in memory.

    Args:
        path: the folder to create.
        identity: names the views; its ``top_k`` decides the layout of a row.
        views: for each view its rows in order, as blocks (b, W); one block is in memory at a time.
        size: N, the rows of every view, and C, the classes.
        repaired: report of the repair; required if ``identity`` has a repair.
    """
    assert (repaired is None) == (identity.repair is None), "a repair has a report"
    num_samples, num_classes = size
    shape = (len(identity.views), num_samples, _row_width(num_classes, identity.top_k))
    dtype = _dtype(identity.top_k)
    with publishing_folder(path) as folder:
        digests = [
            _write_view(_view_path(folder, slot), blocks, rows=shape[1:], dtype=dtype)
            for slot, blocks in enumerate(views)
        ]
        assert len(digests) == shape[0], f"{len(digests)} views were given, not {shape[0]}"
        _describe(folder, shape, dtype)
        record = SoftLabelRecord(
            id=identity.id,
            identity=identity,
            shape=shape,
            num_classes=num_classes,
            sha256=digests,
            repaired=repaired,
            content=_content(shape, num_classes, digests, repaired),
        )
        publish_json(folder / "soft_labels.json", record.model_dump(mode="json"))


def soft_label_path(selections: Path, soft_label_id: str) -> Path:
    """Default folder of soft labels."""
    return selections / f"{short(soft_label_id)}.soft"


def _row_width(num_classes: int, top_k: int) -> int:
    return packed_width(top_k) if top_k else num_classes


def _dtype(top_k: int) -> np.dtype[np.float16] | np.dtype[np.uint16]:
    return np.dtype("<u2") if top_k else np.dtype("<f2")


def _content(
    shape: tuple[int, int, int],
    num_classes: int,
    digests: list[str],
    repaired: RepairReport | None,
) -> str:
    report = None if repaired is None else repaired.model_dump(mode="json")
    return identity("soft_labels.content", [list(shape), num_classes, digests, report])


def _write_view(
    path: Path,
    blocks: Iterable[LabelRows],
    *,
    rows: tuple[int, int],
    dtype: np.dtype[np.float16] | np.dtype[np.uint16],
) -> str:
    """Write one view and return the SHA-256 of its file."""
    digest, num_written = hashlib.sha256(), 0
    path.parent.mkdir(parents=True)
    with path.open("xb") as file:
        for block in blocks:
            assert (block.dtype, block.shape[1:]) == (dtype, rows[1:]), "a block of other rows"
            content = np.ascontiguousarray(block).data
            file.write(content)
            digest.update(content)
            num_written += len(block)
    assert num_written == rows[0], f"{num_written} rows were given, not {rows[0]}"
    return digest.hexdigest()


def _describe(
    folder: Path, shape: tuple[int, int, int], dtype: np.dtype[np.float16] | np.dtype[np.uint16]
) -> None:
    """Let zarr create the array whose chunks are the files of the views."""
    from zarr.api.asynchronous import create_array  # slow to load, and opening does not need it
    from zarr.codecs import BytesCodec

    from pipeline.artefacts.zarr_store import NewStore
    from pipeline.runtime.coroutines import run_here

    def create(key: str, data: Data) -> bool:
        (folder / key).write_bytes(data)
        return True

    is_dense = dtype.kind == "f"
    created = create_array(
        NewStore({ZARR_JSON: _zarr_metadata(shape, dtype)}, create),
        shape=shape,
        dtype=dtype.name,
        chunks=(1, *shape[1:]),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=None,
        fill_value=np.nan if is_dense else 0,
        dimension_names=["view", "sample", "class" if is_dense else "packed"],
        zarr_format=3,
    )
    run_here(created)


def _zarr_metadata(
    shape: tuple[int, int, int], dtype: np.dtype[np.float16] | np.dtype[np.uint16]
) -> bytes:
    """The only valid zarr.json of an array whose chunks are the files of the views."""
    is_dense = dtype.kind == "f"
    described: dict[str, Json] = {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if is_dense else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "dimension_names": ["view", "sample", "class" if is_dense else "packed"],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return json.dumps(described, indent=2).encode()


def _check_description(path: Path, record: SoftLabelRecord) -> None:
    """Reject a zarr.json that describes other numbers to other readers of the array."""
    remedy = f"Remove {path} and run `{MADE_BY}` again."
    found = read_json(path / ZARR_JSON, made_by=MADE_BY, remedy=remedy)
    expected = json.loads(_zarr_metadata(record.shape, _dtype(record.identity.top_k)))
    keys = sorted(expected.keys() | found.keys())
    differing = [key for key in keys if found.get(key) != expected.get(key)]
    if differing:
        raise ArtefactMismatch(
            f"{path / ZARR_JSON} describes other labels than soft_labels.json: "
            f"{printable(', '.join(differing))} differs. {remedy}"
        )


def _view_path(folder: Path, slot: int) -> Path:
    return folder / "c" / str(slot) / "0" / "0"


def _check_view(path: Path, expected: str, shape: tuple[int, int, int]) -> None:
    remedy = f"Remove the .soft folder and run `{MADE_BY}` again."
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} is missing. {remedy}") from error
    if found_bytes != 2 * shape[1] * shape[2]:
        raise ArtefactMismatch(
            f"{path} has {found_bytes:,} bytes (expected {2 * shape[1] * shape[2]:,}). {remedy}"
        )
    found = file_sha256(path)
    if found != expected:
        raise ArtefactMismatch(
            f"{path} is damaged: sha256 {short(found)} (expected {short(expected)}). {remedy}"
        )
