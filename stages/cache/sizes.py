"""Size of a cache before it is made: bytes, objects, and limits of its formats."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from pipeline.artefacts.cache.arrays import KEYS, LABELS, PIXELS, array_specs, view_arrays
from pipeline.artefacts.cache.record import (
    MAX_SHARD_BYTES,
    CacheIdentity,
    CacheManifest,
    CacheShape,
)
from pipeline.artefacts.zarr_arrays import CRC_BYTES, ArraySpec
from stages.caches import cache_layout
from stages.config.cache_teacher import CacheTeacherConfig

KEY_BYTES: Final = 16
"""Bytes of a sample's key, and of the hash of its pixels; each array is one object."""
RECEIPT_BYTES: Final = 330
"""Bytes of an object's line in sealed.json."""
MAX_SEAL_BYTES: Final = 1 << 29


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The size of a cache, computed from its numbers alone."""

    settings: CacheTeacherConfig
    num_samples: int
    num_views: int
    """Number of views, with the clean one."""
    num_classes: int
    num_features: int

    @cached_property
    def manifest(self) -> CacheManifest:
        """Manifest of a cache of this size."""
        return self._manifest(self.num_samples)

    def keeping(self, settings: CacheTeacherConfig) -> "CacheSize":
        """Size for the same images with another choice of what to keep."""
        return replace(self, settings=settings)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of an image in one view, uncompressed."""
        return sum(spec.row_bytes for spec in self._view_arrays)

    @property
    def num_objects(self) -> int:
        """Number of files or write requests: shards, receipts, whole arrays, descriptions."""
        per_shard = 2 * len(self._view_arrays)
        return per_shard * self.num_shards + 2 * len(self._whole_arrays) + len(self._specs) + 3

    @property
    def num_shards(self) -> int:
        """Number of shards of all views."""
        return self.manifest.num_shards * self.num_views

    @property
    def num_bytes(self) -> int:
        """Bytes of all objects as they are stored, or before zstd.

        Before zstd, the padding of the last chunk of a shard does not count: it compresses to
        nothing.
        """
        if self.settings.compression == "zstd":
            return self._bytes_of_rows + self._whole_bytes
        bounds = [self.manifest.rows_of(shard) for shard in range(self.manifest.num_shards)]
        return self._whole_bytes + sum(
            self.num_views * spec.uncompressed_bytes(stop - start)
            for spec in self._view_arrays
            for start, stop in bounds
        )

    def too_large(self) -> Iterator[str]:
        """Limits of the formats that this cache exceeds, each with a remedy."""
        keys = KEY_BYTES * self.num_samples
        if keys > MAX_SHARD_BYTES:
            yield (
                f"the samples' keys are one object of {keys:,} bytes (expected at most "
                f"{MAX_SHARD_BYTES:,}, which are {MAX_SHARD_BYTES // KEY_BYTES:,} images): make a "
                "cache for each part of the images"
            )
        seal = RECEIPT_BYTES * len(self._view_arrays) * self.num_shards
        if seal > MAX_SEAL_BYTES:
            yield (
                f"sealed.json would have about {seal:,} bytes (expected at most "
                f"{MAX_SEAL_BYTES:,}): raise `cache_teacher.shard_rows`, or make a cache for each "
                "part of the images"
            )

    @property
    def _bytes_of_rows(self) -> int:
        return self.num_views * self.num_samples * self.bytes_per_row

    @property
    def _whole_bytes(self) -> int:
        """Bytes of the arrays that are one object."""
        of_samples = [self._specs[name].object_bytes for name in (LABELS, KEYS, PIXELS)]
        rest = self.num_samples - self._few
        return rest * (sum(of_samples) // self._few) + sum(
            spec.object_bytes + CRC_BYTES for spec in self._whole_arrays
        )

    @property
    def _few(self) -> int:
        """Samples of a small cache that sizes are scaled up from; this one may be too large."""
        return self.manifest.layout.shard_rows

    @cached_property
    def _specs(self) -> dict[str, ArraySpec]:
        return array_specs(self._manifest(self._few))

    @property
    def _view_arrays(self) -> list[ArraySpec]:
        return view_arrays(self._manifest(self._few))

    @property
    def _whole_arrays(self) -> list[ArraySpec]:
        return [spec for spec in self._specs.values() if spec.shard_rows is None]

    def _manifest(self, num_samples: int) -> CacheManifest:
        settings = self.settings
        identity = CacheIdentity(
            weights="",
            arch="",
            fingerprint="",
            pixel_digest="",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            views={"count": 0},
            precision="fp32",
            features=settings.features,
            top_k=settings.top_k,
            temperatures=settings.temperatures if settings.top_k else (),
        )
        shape = CacheShape(
            num_views=self.num_views,
            num_samples=num_samples,
            num_classes=self.num_classes,
            num_features=self.num_features,
        )
        layout = cache_layout(
            settings, num_classes=self.num_classes, num_features=self.num_features
        )
        return CacheManifest(id=identity.id, identity=identity, shape=shape, layout=layout)
