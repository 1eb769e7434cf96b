"""The teacher cache: what the teacher said of every sample, in every view.

    <id>/
        manifest.json                   id, everything that went into it, array specifications
        data.zarr/                      a plain Zarr v3 group, open to any reader
            logits    (V+1, N, C) f2    view 0 is the clean evaluation view
            features  (V+1, N, D) f2    penultimate features, the classifier's input; optional
            labels    (N,) i4           the labels of the images that the teacher saw
            keys      (N, 16) u1        their sample keys: the join is by content
            head_weight (C, D) f4, head_bias (C,) f4    the teacher's classifier
        receipts/<array>/<v>.<s>.json   one per stored object: key, bytes, sha256, rows, min, max
        sealed.json                     written last: digest of every receipt, their root hash, and
                                        a summary (accuracy, fidelity, versions, seconds)

The id is a hash of the teacher's weights, the images, preprocessing, views and precision, so the
same inputs have the same id on any machine. Chunks run along N only and end in a CRC-32C; NaN means
never written. Zarr reads a missing object as the fill value without complaint, so the receipts, not
Zarr, say what is there: opening compares sizes, reading compares checksums.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.artefacts.store import publish_json, publishing_folder, read_json
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError
from pipeline.provenance import Json, canonical_json, file_sha256, identity, short

FORMAT_VERSION = 1
MADE_BY = "heartcut cache-teacher"
SHARD_ROWS = 16_384
"""The commit unit: what one kill may cost in teacher forward passes."""
_CHUNK_BYTES = 512 * 1024
_MAX_CHUNK_ROWS = 4096
_FLOAT16_MAX = 65_504.0

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CacheIdentity(_Strict):
    """Everything that the cached numbers depend on."""

    weights: str
    """Digest of the teacher's weights."""
    arch: str
    fingerprint: str
    """Of the images and labels."""
    pixel_digest: str
    """Of the decoded pixels: another decoder shows the teacher other images."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: dict[str, int | bool]
    precision: Literal["bf16", "fp32"]
    features: bool

    @property
    def id(self) -> str:
        """Hash of all of it, 64 hex digits."""
        return identity("teacher_cache", [FORMAT_VERSION, self.model_dump(mode="json")])


class CacheShape(_Strict):
    """Sizes of the arrays."""

    num_views: int
    """Views stored, the clean one included: V + 1."""
    num_samples: int
    num_classes: int
    num_features: int


class CacheManifest(_Strict):
    """manifest.json: never changes."""

    format: str = "heartcut.teacher_cache"
    version: int = FORMAT_VERSION
    id: str
    identity: CacheIdentity
    shape: CacheShape


class Fidelity(_Strict):
    """What float16 storage costs: KL divergence from the float32 logits, on a sample of rows."""

    temperature: float
    mean_kl: float
    max_kl: float


class CacheSummary(_Strict):
    """What the teacher is like; told by the stage, not part of the id."""

    accuracy_training: list[float]
    """Per view, on the rows that are trained on (T); on all rows where nothing is held out."""
    accuracy_held_out: list[float]
    """Per view, on the held-out rows (V); empty where nothing is held out."""
    num_wrong: int
    """Rows that the teacher gets wrong in the clean view."""
    agreement: list[float]
    """Share of rows in which view v has the clean view's class."""
    fidelity: list[Fidelity]
    head_error: float
    """max |logit - (head of the stored features)|."""
    target_in_sample: bool
    """The teacher's own training saw the held-out images."""
    teacher: str
    """What a person calls the teacher."""
    seconds: float
    device: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """A sealed cache, open for reading."""

    path: Path
    manifest: CacheManifest
    summary: CacheSummary
    root_hash: str
    _group: zarr.Group = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a sealed cache; sizes and receipts are checked here, checksums as data is read.

        Raises:
            ArtefactNotFound: if there is no sealed cache.
            ArtefactMismatch: if an object is missing, of another size, or not what was sealed.
        """
        seal = read_json(path / "sealed.json", made_by=MADE_BY)
        manifest = _parse(CacheManifest, path / "manifest.json")
        if manifest.identity.id != manifest.id:
            raise ArtefactMismatch(
                f"{path} has an id that its manifest does not give: {short(manifest.id)} "
                f"(expected {short(manifest.identity.id)}). It was edited or damaged; remove it."
            )
        root = _check_objects(path)
        if seal.get("root") != root:
            raise ArtefactMismatch(
                f"{path} is not what was sealed: root hash {short(root)} "
                f"(expected {short(str(seal.get('root')))}). Remove it and run `{MADE_BY}` again."
            )
        try:
            summary = CacheSummary.model_validate(seal.get("summary"))
        except ValidationError as error:
            raise _bad_schema(path / "sealed.json", error) from error
        group = zarr.open_group(path / "data.zarr", mode="r", zarr_format=3)
        return cls(path=path, manifest=manifest, summary=summary, root_hash=root, _group=group)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def shape(self) -> CacheShape:
        return self.manifest.shape

    def logits(self, view: int) -> Float16:
        """Logits of all samples in one view, (N, C) float16."""
        return self._read("logits", view)

    def features(self, view: int) -> Float16:
        """Penultimate features of all samples in one view, (N, D) float16.

        Raises:
            ArtefactMismatch: if the cache was made without them.
        """
        if not self.manifest.identity.features:
            raise ArtefactMismatch(
                f"{self.path} has no features (expected them for influence). "
                "Set `cache_teacher.features = true` and run `heartcut cache-teacher`, "
                "or choose another `select.strategy`."
            )
        return self._read("features", view)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64"""
        return self._array("labels").astype(np.int64)

    @property
    def keys(self) -> NDArray[np.uint8]:
        """Sample keys, (N, 16)."""
        return self._array("keys").astype(np.uint8, copy=False)

    @property
    def head(self) -> tuple[Float32, Float32]:
        """The teacher's classifier: weight (C, D) and bias (C,)."""
        weight, bias = self._array("head_weight"), self._array("head_bias")
        return weight.astype(np.float32, copy=False), bias.astype(np.float32, copy=False)

    def _read(self, name: str, view: int) -> Float16:
        rows = self._array(name, view).astype(np.float16, copy=False)
        if not np.isfinite(rows).all():
            first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ArtefactMismatch(
                f"{self.path} holds no number for {name} of sample {first} in view {view}. "
                f"It is damaged: remove it and run `{MADE_BY}` again."
            )
        return rows

    def _array(self, name: str, view: int | None = None) -> NDArray[np.generic]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        try:
            return np.asarray(array[:] if view is None else array[view])
        except (ValueError, RuntimeError) as error:  # checksum, truncated shard, broken zstd
            where = name if view is None else f"{name} of view {view}"
            raise ArtefactMismatch(
                f"{self.path} is damaged at {where}: {error}. Remove it and run `{MADE_BY}` again."
            ) from error


@dataclass(kw_only=True)
class CacheWriter:
    """A cache that is being filled; shards are written whole, each with its receipt."""

    folder: Path
    manifest: CacheManifest
    _group: zarr.Group = field(repr=False)
    _waiting: dict[str, list[Float16]] = field(default_factory=dict, repr=False)
    _next_row: int = 0
    _view: int = 0

    def append(self, logits: Float32, features: Float32 | None) -> None:
        """Add the next rows of the current view, in sample order.

        Raises:
            PipelineError: if a value is not finite or does not fit float16; it names the sample.
        """
        start = self._next_row
        self._keep("logits", logits, start)
        if features is not None:
            self._keep("features", features, start)
        self._next_row += len(logits)
        if self._num_waiting >= SHARD_ROWS:
            self._flush(SHARD_ROWS)

    def end_view(self) -> None:
        """Write what waits of this view and go on to the next one."""
        assert self._next_row == self.manifest.shape.num_samples, "a view has every sample once"
        while self._num_waiting:
            self._flush(min(SHARD_ROWS, self._num_waiting))
        self._view += 1
        self._next_row = 0

    @property
    def _num_waiting(self) -> int:
        return sum(len(rows) for rows in self._waiting.get("logits", []))

    def _keep(self, name: str, rows: Float32, start: int) -> None:
        peak = np.abs(rows).max(axis=1)
        if not (peak <= _FLOAT16_MAX).all():  # false for NaN too
            bad = int(np.flatnonzero(~(peak <= _FLOAT16_MAX))[0])
            raise PipelineError(
                f"the teacher's {name} of sample {start + bad} in view {self._view} reach "
                f"{peak[bad]} (expected finite values up to {_FLOAT16_MAX:.0f}). Check the "
                "checkpoint and `mean`/`std`, or try `--precision fp32`."
            )
        self._waiting.setdefault(name, []).append(rows.astype(np.float16))

    def _flush(self, num_rows: int) -> None:
        start = self._next_row - self._num_waiting
        for name, parts in self._waiting.items():
            rows = np.concatenate(parts)
            self._write(name, rows[:num_rows], start)
            self._waiting[name] = [rows[num_rows:]] if len(rows) > num_rows else []

    def _write(self, name: str, rows: Float16, start: int) -> None:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        array[self._view, start : start + len(rows)] = rows
        shard = start // SHARD_ROWS
        _write_receipt(
            self.folder,
            name,
            index=f"{self._view}.{shard}",
            key=f"data.zarr/{name}/c/{self._view}/{shard}/0",
            rows=(start, start + len(rows)),
            values=rows,
        )


@dataclass(frozen=True, kw_only=True)
class CacheContents:
    """What is written beside the logits: the same for every view."""

    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    head_weight: Float32
    head_bias: Float32


@contextmanager
def create(
    path: Path, *, identity: CacheIdentity, shape: CacheShape, contents: CacheContents
) -> Iterator["Unsealed"]:
    """Yield a cache to fill; it is published under ``path`` only when it was sealed."""
    manifest = CacheManifest(id=identity.id, identity=identity, shape=shape)
    with publishing_folder(path) as folder:
        publish_json(folder / "manifest.json", manifest.model_dump(mode="json"))
        group = _create_arrays(folder, manifest)
        _write_contents(folder, group, contents)
        unsealed = Unsealed(
            writer=CacheWriter(folder=folder, manifest=manifest, _group=group), folder=folder
        )
        yield unsealed
        assert unsealed.is_sealed, "a cache is published sealed"


@dataclass(kw_only=True)
class Unsealed:
    """A cache between its first and its last byte."""

    writer: CacheWriter
    folder: Path
    is_sealed: bool = False
    started: float = field(default_factory=time.monotonic)

    def seal(self, summary: CacheSummary) -> None:
        """Declare the cache complete."""
        expected = self.writer.manifest.shape.num_views
        assert self.writer._view == expected, "a cache is sealed when every view is written"
        seal: dict[str, Json] = {
            "root": _check_objects(self.folder),
            "receipts": _receipt_digests(self.folder),
            "summary": summary.model_dump(mode="json"),
        }
        publish_json(self.folder / "sealed.json", seal)
        self.is_sealed = True


def cache_path(caches: Path, cache_id: str) -> Path:
    """Where a cache lies by default: its path contains its id."""
    return caches / short(cache_id)


def chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk: a power of two, about half a mebibyte."""
    rows = max(1, _CHUNK_BYTES // row_bytes)
    return min(_MAX_CHUNK_ROWS, 1 << (rows.bit_length() - 1))


def _create_arrays(folder: Path, manifest: CacheManifest) -> zarr.Group:
    shape = manifest.shape
    attributes = {"heartcut": manifest.model_dump(mode="json")}
    group = zarr.create_group(folder / "data.zarr", zarr_format=3, attributes=attributes)
    widths = {"logits": shape.num_classes}
    if manifest.identity.features:
        widths["features"] = shape.num_features
    for name, width in widths.items():
        group.create_array(
            name,
            shape=(shape.num_views, shape.num_samples, width),
            chunks=(1, chunk_rows(2 * width), width),
            shards=(1, SHARD_ROWS, width),
            dtype="float16",
            fill_value=float("nan"),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            config={"write_empty_chunks": True},
            dimension_names=("view", "sample", "class" if name == "logits" else "feature"),
        )
    return group


def _write_contents(folder: Path, group: zarr.Group, contents: CacheContents) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "labels": contents.labels.astype(np.int32),
        "keys": contents.keys,
        "head_weight": contents.head_weight.astype(np.float32),
        "head_bias": contents.head_bias.astype(np.float32),
    }
    for name, values in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        array[:] = values
        key = f"data.zarr/{name}/c/" + "/".join("0" for _ in values.shape)
        _write_receipt(folder, name, index="0.0", key=key, rows=(0, len(values)), values=values)


def _write_receipt(
    folder: Path,
    name: str,
    *,
    index: str,
    key: str,
    rows: tuple[int, int],
    values: NDArray[np.generic],
) -> None:
    stored = folder / key
    publish_json(
        folder / "receipts" / name / f"{index}.json",
        {
            "key": key,
            "bytes": stored.stat().st_size,
            "sha256": file_sha256(stored),
            "rows": list(rows),
            "min": float(values.min()),
            "max": float(values.max()),
        },
    )


def _receipt_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the canonical text of every receipt, by name."""
    digests = {}
    for path in sorted(folder.glob("receipts/*/*.json")):
        receipt = read_json(path, made_by=MADE_BY)
        digests[str(path.relative_to(folder))] = sha256(canonical_json(receipt)).hexdigest()
    return digests


def _check_objects(folder: Path) -> str:
    """Compare every stored object's size with its receipt; return the root hash."""
    for path in sorted(folder.glob("receipts/*/*.json")):
        receipt = read_json(path, made_by=MADE_BY)
        stored = folder / str(receipt["key"])
        if not stored.is_file():
            raise ArtefactNotFound(
                f"{stored} is missing (expected {receipt['bytes']} bytes). "
                f"Remove {folder} and run `{MADE_BY}` again."
            )
        if stored.stat().st_size != receipt["bytes"]:
            raise ArtefactMismatch(
                f"{stored} has {stored.stat().st_size:,} bytes (expected {receipt['bytes']:,}). "
                f"Remove {folder} and run `{MADE_BY}` again."
            )
    manifest = read_json(folder / "manifest.json", made_by=MADE_BY)
    metadata = [
        [str(path.relative_to(folder)), json.loads(path.read_text())]
        for path in sorted((folder / "data.zarr").rglob("zarr.json"))
    ]
    return identity("teacher_cache.root", [manifest, metadata, _receipt_digests(folder)])


def _parse(model: type[CacheManifest], path: Path) -> CacheManifest:
    value = read_json(path, made_by=MADE_BY)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _bad_schema(path, error) from error


def _bad_schema(path: Path, error: ValidationError) -> ArtefactMismatch:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return ArtefactMismatch(
        f"{path} does not follow format version {FORMAT_VERSION}: {where}: {first['msg']}. "
        f"Remove its folder and run `{MADE_BY}` again."
    )


def remember(caches: Path, *, request: str, train: str, test: str) -> None:
    """Note which caches answer a request, so that later stages find them without a teacher.

    ``<caches>/index.json`` is a convenience of one workspace, not a part of any cache."""
    known = _known(caches)
    known[request] = {"train": train, "eval": test}
    publish_json(caches / "index.json", known)


def recall(caches: Path, *, request: str, split: Literal["train", "eval"]) -> Path | None:
    """Where the cache that answers ``request`` lies, if it was ever made here."""
    found = _known(caches).get(request)
    if not isinstance(found, dict):
        return None
    path = cache_path(caches, str(found[split]))
    return path if path.is_dir() else None


def _known(caches: Path) -> dict[str, Json]:
    path = caches / "index.json"
    return read_json(path, made_by=MADE_BY) if path.exists() else {}
