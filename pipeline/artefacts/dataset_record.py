"""dataset.json: what is said of a data set beside its betons.

Written last, so a folder that holds one is complete. `pipeline.artefacts.dataset` owns the rest.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.artefacts.publishing import publish_json, read_json
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json

FORMAT_VERSION: Final = 3
MADE_BY = "heartcut prepare"


class FileRecord(BaseModel):
    """Size and hash of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class SplitRecord(BaseModel):
    """What dataset.json says of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_samples: int
    class_counts: list[int]
    fingerprint: str
    pixel_digest: str
    samples: str
    """Hash of keys, labels and pixel hashes in the order of the beton."""
    beton: FileRecord


class DatasetRecord(BaseModel):
    """dataset.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """Smallest and largest, in pixels."""
    num_jpegs: int
    """Images of both betons that are stored as JPEGs; the others are stored as pixels."""
    decoder: str
    """What made pixels of the source's files."""
    mean: tuple[float, float, float]
    """Of the rows that are trained on, per channel, pixels / 255."""
    std: tuple[float, float, float]
    held_out: list[int]
    """Sample indices of train.beton that no training sees."""
    held_out_seed: int
    train: SplitRecord
    eval: SplitRecord
    skipped: list[str]
    """Source files left out by --skip-corrupt."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of all images; None where they differ."""
        if self.heights[0] < self.heights[1] or self.widths[0] < self.widths[1]:
            return None
        return self.heights[0], self.widths[0]

    @model_validator(mode="before")
    @classmethod
    def _read_version_2(cls, stored: object) -> object:
        """Until version 3 all images were of one size, and stored as pixels."""
        if not isinstance(stored, dict) or stored.get("version") != 2:
            return stored
        height, width = stored.get("image_size") or (None, None)
        rest = {name: value for name, value in stored.items() if name != "image_size"}
        sizes = {"heights": [height, height], "widths": [width, width]}
        return {**rest, **sizes, "num_jpegs": 0, "version": FORMAT_VERSION}


def read_record(folder: Path) -> DatasetRecord:
    """dataset.json, checked against its schema."""
    path = folder / "dataset.json"
    try:
        return DatasetRecord.model_validate(read_json(path, made_by=MADE_BY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactMismatch(
            f"{path} does not follow format version {FORMAT_VERSION}: {where}: {first['msg']}. "
            f"Remove {folder} and run `{MADE_BY}` again."
        ) from error


def write_record(folder: Path, record: DatasetRecord) -> None:
    """Write dataset.json."""
    value: dict[str, Json] = record.model_dump(mode="json")
    publish_json(folder / "dataset.json", value)
