"""Writing a teacher cache: rows are appended view by view and stored in whole shards.

The layout is told in `teacher_cache`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.artefacts.cache_receipts import write_receipt, write_seal
from pipeline.artefacts.cache_record import CacheIdentity, CacheManifest, CacheShape, CacheSummary
from pipeline.artefacts.store import publish_json, publishing_folder
from pipeline.errors import PipelineError

SHARD_ROWS = 16_384
"""The commit unit: what one kill may cost in teacher forward passes."""
_CHUNK_BYTES = 512 * 1024
_MAX_CHUNK_ROWS = 4096
_FLOAT16_MAX = 65_504.0

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CacheContents:
    """What is written beside the logits: the same for every view."""

    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    head_weight: Float32
    head_bias: Float32


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
        write_receipt(
            self.folder,
            name,
            index=f"{self._view}.{shard}",
            key=f"data.zarr/{name}/c/{self._view}/{shard}/0",
            rows=(start, start + len(rows)),
            values=rows,
        )


@dataclass(kw_only=True)
class Unsealed:
    """A cache between its first and its last byte."""

    writer: CacheWriter
    folder: Path
    is_sealed: bool = False

    def seal(self, summary: CacheSummary) -> None:
        """Declare the cache complete."""
        expected = self.writer.manifest.shape.num_views
        assert self.writer._view == expected, "a cache is sealed when every view is written"
        write_seal(self.folder, summary)
        self.is_sealed = True


@contextmanager
def create(
    path: Path, *, identity: CacheIdentity, shape: CacheShape, contents: CacheContents
) -> Iterator[Unsealed]:
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
        write_receipt(folder, name, index="0.0", key=key, rows=(0, len(values)), values=values)
