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
        sealed.json                     written last: digest of every receipt, their root hash, a
                                        summary (accuracy, fidelity, versions, seconds), and a
                                        digest of all that

The id is a hash of the teacher's weights, the images, preprocessing, views and precision, so the
same inputs have the same id on any machine. Chunks run along N only and end in a CRC-32C; NaN means
never written. Zarr reads a missing object as the fill value without complaint, so the receipts, not
Zarr, say what is there: opening compares sizes, reading compares checksums.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.artefacts.cache_receipts import Seal, read_cache_record, read_seal
from pipeline.artefacts.cache_record import MADE_BY, CacheManifest, CacheShape, CacheSummary
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import short

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """A sealed cache, open for reading."""

    path: Path
    manifest: CacheManifest
    seal: Seal
    _group: zarr.Group = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a sealed cache; sizes and receipts are checked here, checksums as data is read.

        Raises:
            ArtefactNotFound: if there is no sealed cache.
            ArtefactMismatch: if an object is missing, of another size, or not what was sealed.
        """
        seal = read_seal(path)
        manifest = read_cache_record(CacheManifest, path, "manifest.json")
        if manifest.identity.id != manifest.id:
            raise ArtefactMismatch(
                f"{path} has an id that its manifest does not give: {short(manifest.id)} "
                f"(expected {short(manifest.identity.id)}). Remove it and run `{MADE_BY}` again."
            )
        group = zarr.open_group(path / "data.zarr", mode="r", zarr_format=3)
        return cls(path=path, manifest=manifest, seal=seal, _group=group)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def summary(self) -> CacheSummary:
        return self.seal.summary

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
