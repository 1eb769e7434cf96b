"""Soft labels: the teacher's distributions after revision, ready to be memory-mapped.

    <id>.soft/
        soft_labels.json   written last: id, cache id, revision, temperature, views, digests
        zarr.json          with c/…: an uncompressed Zarr v3 array (V, N, C) float16 whose chunk is
        c/<v>/0/0          one view, so each view is also one flat file for `numpy.memmap`

Slot v holds the labels of view ``views[v]``. Rows are probabilities at `temperature`, revised in
float32 and stored in float16.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.artefacts.records import Record, read_record
from pipeline.artefacts.store import publish_json, publishing_folder
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import file_sha256, identity, short

FORMAT_VERSION: Final = 1
MADE_BY = "heartcut select"


class SoftLabelIdentity(Record):
    """Everything that the labels depend on."""

    cache: str
    """Id of the teacher cache."""
    view_spec: dict[str, int | bool]
    """The views of the cache, so that a student can replay them without it."""
    revision: Literal["none", "wrong", "all", "swap", "drop-wrong"]
    eta: float | None
    """None where the revision has none."""
    temperature: float
    """The temperature of distillation."""
    revise_at: float
    """The temperature of the teacher's probabilities."""
    views: tuple[int, ...]

    @property
    def id(self) -> str:
        return identity("soft_labels", [FORMAT_VERSION, self.model_dump(mode="json")])


class SoftLabelRecord(Record):
    """soft_labels.json."""

    format: Literal["heartcut.soft_labels"] = "heartcut.soft_labels"
    version: Literal[1] = FORMAT_VERSION
    id: str
    identity: SoftLabelIdentity
    shape: tuple[int, int, int]
    """V, N, C"""
    sha256: list[str]
    """Of each view's file."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """Complete soft labels, open for reading."""

    path: Path
    record: SoftLabelRecord

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open soft labels; every byte is checked against soft_labels.json.

        Raises:
            ArtefactNotFound: if they were not made.
            ArtefactMismatch: if they are damaged.
        """
        record_path = path / "soft_labels.json"
        remedy = f"Remove {path} and run `{MADE_BY}` again."
        record = read_record(SoftLabelRecord, record_path, made_by=MADE_BY, remedy=remedy)
        if record.identity.id != record.id:
            raise ArtefactMismatch(
                f"{path} has an id that its settings do not give: {short(record.id)} (expected "
                f"{short(record.identity.id)}). {remedy}"
            )
        num_views = len(record.identity.views)
        if record.shape[0] != num_views or len(record.sha256) != num_views:
            raise ArtefactMismatch(
                f"{record_path} tells of {record.shape[0]} views and {len(record.sha256)} digests "
                f"(expected {num_views} each). {remedy}"
            )
        for slot, expected in enumerate(record.sha256):
            _check_view(_view_path(path, slot), expected, record.shape)
        return cls(path=path, record=record)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def by_view(self) -> bool:
        """Slot v belongs to view v + 1; False: one clean-view label serves every view."""
        return self.record.identity.views != (0,)

    def views(self) -> list[NDArray[np.float16]]:
        """The label rows of each view, memory-mapped, (N, C) float16 each."""
        rows = self.record.shape[1:]
        return [
            np.memmap(_view_path(self.path, slot), np.float16, "r", shape=rows)
            for slot in range(self.record.shape[0])
        ]


def write(
    path: Path,
    *,
    identity: SoftLabelIdentity,
    views: Iterable[NDArray[np.float16]],
    shape: tuple[int, int, int],
) -> None:
    """Write the views in order and publish them under ``path`` when all are there."""
    with publishing_folder(path) as folder:
        array = zarr.create_array(
            folder,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="float16",
            fill_value=float("nan"),
            compressors=None,
            zarr_format=3,
            config={"write_empty_chunks": True},
            dimension_names=("view", "sample", "class"),
        )
        num_written = 0
        for slot, rows in enumerate(views):
            array[slot] = rows
            num_written += 1
        assert num_written == shape[0]
        record = SoftLabelRecord(
            id=identity.id,
            identity=identity,
            shape=shape,
            sha256=[file_sha256(_view_path(folder, slot)) for slot in range(shape[0])],
        )
        publish_json(folder / "soft_labels.json", record.model_dump(mode="json"))


def soft_label_path(selections: Path, soft_label_id: str) -> Path:
    """Where soft labels lie by default."""
    return selections / f"{short(soft_label_id)}.soft"


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
