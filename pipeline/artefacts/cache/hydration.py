"""A cache in the order of a data set: its rows copied once into local memory-mapped files.

    <folder>/<root>.hydrated/<array>.<view>[.<rows>].npy    (N, ...) in the data set's order
    <folder>/<root>.hydrated/<...>.json                     its SHA-256; created after it

Gathering single rows from shards would read each shard many times over. So arrays that are needed
more than once, or in another order, are verified and copied shard by shard into one flat file that
any number of processes map. The file can be removed at any time; it is recomputed when needed. If
several processes need a copy at once, one writes it and the others wait. On a file system without
locks each process writes the same copy, and the last one stays.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.cache.arrays import (
    FEATURES,
    LOGITS,
    LOGSUMEXP,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
)
from pipeline.artefacts.cache.join import Joined
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.publishing import locked_folder, publish_json, publishing_file
from pipeline.artefacts.records import Record, read_record
from pipeline.errors import Damaged, PipelineError
from pipeline.methods.sparse_logits import SparseLogits, reconstruct
from pipeline.provenance import array_sha256, file_sha256, short
from pipeline.runtime.progress import progress

HYDRATED: Final = ".hydrated"
_SPARSE: Final = (TOP_CLASS, TOP_LOGIT, TARGET_LOGIT, LOGSUMEXP)
_MADE_BY = "heartcut select"

Rows = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class LogitBlock:
    """The logits of some samples of a data set in one view."""

    samples: slice
    logits: Tensor
    """(B, C), float16; float32 where they are reconstructed from the top k."""
    classes: Tensor | None
    """The top k classes, (B, K) int64, where only these are kept."""


@dataclass(frozen=True, kw_only=True)
class HydratedCache:
    """A sealed cache, read in the order of a data set.

    Rows that the cache does not have are NaN, or zero in arrays of integers.
    """

    cache: TeacherCache
    joined: Joined
    folder: Path
    """Folder of the local copies."""
    _mapped: dict[tuple[str, int], Rows] = field(default_factory=dict, repr=False)
    """Copies that were checked and mapped already."""

    @property
    def num_samples(self) -> int:
        return len(self.joined.rows)

    def features(self, view: int) -> NDArray[np.float16]:
        """Penultimate features of one view, (N, D) float16, memory-mapped.

        Raises:
            ArtefactMismatch: if the cache was made without them, or an object is damaged.
        """
        self.cache.require_features()
        return self._array(FEATURES, view).view(np.float16)

    def logits(self, view: int, *, temperature: float) -> Tensor:
        """Logits of one view for use at ``temperature``, (N, C); float16, memory-mapped, or
        float32, where they are reconstructed from the top k."""
        if not self.cache.is_sparse:
            return torch.from_numpy(self._array(LOGITS, view))
        return torch.cat(
            [block.logits for block in self.logit_blocks(view, temperature=temperature)]
        )

    def logit_blocks(self, view: int, *, temperature: float) -> Iterator[LogitBlock]:
        """Logits of one view for use at ``temperature``, a shard's worth of samples at a time.

        Nothing is copied to the disk where the data set has the cache's order.

        Raises:
            ArtefactMismatch: if an object is damaged, or what ``temperature`` needs was not kept.
        """
        if self.cache.is_sparse:
            yield from self._sparse_blocks(view, temperature)
            return
        start = 0
        for rows in self._blocks(LOGITS, view):
            samples = slice(start, start + len(rows))
            yield LogitBlock(samples=samples, logits=torch.from_numpy(rows), classes=None)
            start = samples.stop

    def logit_rows(self, view: int, samples: Tensor, *, temperature: float) -> Tensor:
        """Logits of some samples in one view for use at ``temperature``, (n, C).

        Raises:
            ArtefactMismatch: if an object is damaged, or what ``temperature`` needs was not kept.
        """
        if not self.cache.is_sparse:
            return torch.from_numpy(self._array(LOGITS, view))[samples]
        self.cache.require_temperature(temperature)
        parts = [torch.from_numpy(self._array(name, view))[samples] for name in _SPARSE]
        return self._dense(parts, samples.numpy(), temperature)

    def _sparse_blocks(self, view: int, temperature: float) -> Iterator[LogitBlock]:
        self.cache.require_temperature(temperature)
        start = 0
        for arrays in zip(*(self._blocks(name, view) for name in _SPARSE), strict=True):
            parts = [torch.from_numpy(part) for part in arrays]
            samples = slice(start, start + len(parts[0]))
            dense = self._dense(parts, samples, temperature)
            yield LogitBlock(samples=samples, logits=dense, classes=parts[0].long())
            start = samples.stop

    def _dense(
        self, parts: list[Tensor], samples: slice | NDArray[np.int64], temperature: float
    ) -> Tensor:
        """Logits of some samples from what a top-k cache keeps of them; NaN where it has none."""
        classes, logits, target, logsumexp = parts
        known = self.joined.known[samples]
        labels = np.where(known, self.cache.labels[self.joined.rows[samples]], 0)
        sparse = SparseLogits(
            classes=classes.long(),
            logits=logits,
            target=target,
            logsumexp=logsumexp,
            temperatures=self.cache.manifest.identity.temperatures,
        )
        num_classes = self.cache.shape.num_classes
        dense = reconstruct(
            sparse, torch.from_numpy(labels), num_classes=num_classes, temperature=temperature
        )
        dense[torch.from_numpy(~known)] = torch.nan
        return dense

    def _blocks(self, name: str, view: int) -> Iterator[Rows]:
        """Rows of an array in the data set's order, a shard's worth at a time."""
        size = self.cache.manifest.layout.shard_rows
        if self.joined.is_identity:
            yield from self._first_rows(self.cache.blocks(name, view))
        else:
            rows = self._array(name, view)
            for start in range(0, self.num_samples, size):
                yield rows[start : start + size]

    def _array(self, name: str, view: int) -> Rows:
        """One view of an array in the data set's order, memory-mapped; copied if it must be."""
        if (name, view) not in self._mapped:
            self._mapped[name, view] = self._map(name, view)
        return self._mapped[name, view]

    def _map(self, name: str, view: int) -> Rows:
        rows = array_sha256(self.joined.rows)
        is_all = self.joined.is_identity and self.num_samples == self.cache.shape.num_samples
        order = "" if is_all else f".{short(rows)}"
        folder = self.folder / f"{short(self.cache.root)}{HYDRATED}"
        path = folder / f"{name}.{view}{order}.npy"
        copied = self._whole_copy(path, name, rows=rows)
        if copied is None:
            with locked_folder(folder):
                copied = self._whole_copy(path, name, rows=rows)  # by another process meanwhile
                if copied is None:
                    copied = self._copied(path, name, view, rows=rows)
        if copied is None:
            raise Damaged(
                f"{path} changed right after it was written. Check the disk, and that no other "
                "program writes to this folder."
            )
        return copied

    def _copied(self, path: Path, name: str, view: int, *, rows: str) -> Rows | None:
        """Write the copy, record its size and hash, and map it."""
        with publishing_file(path) as partial:
            self._write(partial, name, view)
        record = _CopyRecord(
            name=path.name,
            root=self.cache.root,
            rows=rows,
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
        )
        publish_json(path.with_suffix(".json"), record.model_dump(mode="json"))
        return self._whole_copy(path, name, rows=rows)

    def _whole_copy(self, path: Path, name: str, *, rows: str) -> Rows | None:
        """The copy, memory-mapped; None unless it is complete and its bytes match its record."""
        if not _is_whole(path, root=self.cache.root, rows=rows):
            return None
        try:
            # "c" shares memory as "r" does, but torch does not warn about a read-only array
            copied: Rows = np.load(path, mmap_mode="c", allow_pickle=False)
        except ValueError:
            return None
        spec = self.cache.reader.specs[name]
        expected = (self.num_samples, *spec.shape[2:]), np.dtype(spec.dtype)
        return copied if (copied.shape, copied.dtype) == expected else None

    def _write(self, path: Path, name: str, view: int) -> None:
        """Write the rows of every shard to the positions of their samples."""
        spec = self.cache.reader.specs[name]
        shape, dtype = (self.num_samples, *spec.shape[2:]), np.dtype(spec.dtype)
        with path.open("w+b") as file:
            described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)
            if self.joined.is_identity:  # several times faster than over a memory map
                for rows in self._first_rows(self._with_progress(name, view)):
                    file.write(np.ascontiguousarray(rows).data)
                return
            header = file.tell()
            # Not truncate: a full disk must raise here, not send SIGBUS while the file is mapped.
            os.posix_fallocate(file.fileno(), 0, header + self.num_samples * spec.row_bytes)
            with mmap.mmap(file.fileno(), 0) as mapped:
                out: Rows = np.ndarray(shape, dtype, buffer=mapped, offset=header)
                for samples, values in self._placed(name, view, dtype):
                    out[samples] = values
                    mapped.madvise(mmap.MADV_DONTNEED)  # frees memory; the file keeps the pages
                del out

    def _placed(
        self, name: str, view: int, dtype: np.dtype[np.generic]
    ) -> Iterator[tuple[NDArray[np.int64], Rows | float]]:
        """Sample indices and their rows, a shard at a time."""
        joined = self.joined
        order = np.argsort(joined.rows, kind="stable")
        if joined.num_extra:
            yield order[: joined.num_extra], np.nan if dtype.kind == "f" else 0
        samples = order[joined.num_extra :]  # those that the cache has, in the order of its rows
        rows = joined.rows[samples]
        start = 0
        for block in self._with_progress(name, view):
            stop = start + len(block)
            first, last = np.searchsorted(rows, [start, stop])
            yield samples[first:last], block[rows[first:last] - start]
            start = stop

    def _with_progress(self, name: str, view: int) -> Iterator[Rows]:
        """One view of an array in the cache's order, a shard at a time, with a progress bar."""
        total = self.cache.shape.num_samples
        with progress(f"copy {name} of view {view}", total=total, unit="rows") as bar:
            for block in self.cache.blocks(name, view):
                yield block
                bar.advance(len(block))

    def _first_rows(self, blocks: Iterator[Rows]) -> Iterator[Rows]:
        """The blocks up to the last sample: a data set may be the first part of a cache."""
        left = self.num_samples
        for block in blocks:
            yield block[:left]
            left -= len(block[:left])
            if left == 0:
                return


class _CopyRecord(Record):
    """Record of one copy: its source, order, size and hash."""

    name: str
    root: str
    rows: str
    bytes: int
    sha256: str


def _is_whole(path: Path, *, root: str, rows: str) -> bool:
    """True if the copy was finished and its bytes match its record."""
    described = path.with_suffix(".json")
    if not path.is_file() or not described.is_file():
        return False
    try:
        record = read_record(_CopyRecord, described, made_by=_MADE_BY, remedy="")
    except PipelineError:
        return False
    found = (record.name, record.root, record.rows, record.bytes)
    same = found == (path.name, root, rows, path.stat().st_size)
    return same and file_sha256(path) == record.sha256
