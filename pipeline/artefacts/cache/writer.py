"""Writing a teacher cache: shard by shard, in any order, by any number of workers.

An object is created first, then its receipt; an object with a receipt is final. So a killed worker
loses at most the shards in flight, a resumed one computes the shards without receipts, and workers
need no communication. `teacher_cache` documents the layout.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.arrays import (
    DATA,
    HEAD_BIAS,
    HEAD_WEIGHT,
    KEYS,
    LABELS,
    PIXELS,
    SMALL_AT_ONCE,
    ArrayReader,
    array_specs,
    group_attributes,
    group_texts,
    object_key,
    object_names,
    read_in_threads,
    sealed_metadata,
    view_arrays,
)
from pipeline.artefacts.cache.receipts import (
    MANIFEST,
    Facts,
    Note,
    Receipt,
    Seal,
    create_receipt,
    create_record,
    create_seal,
    extremes,
    facts_of,
    read_manifest,
    read_receipt,
    receipt_key,
)
from pipeline.artefacts.cache.record import (
    CacheIdentity,
    CacheLayout,
    CacheManifest,
    CacheShape,
    CacheSummary,
)
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.zarr_arrays import ArraySpec
from pipeline.errors import ArtefactMismatch, Damaged, PipelineError

if TYPE_CHECKING:
    from pipeline.artefacts.zarr_store import Created, NewArrays

Float32 = NDArray[np.float32]
_FLOAT16_MAX = 65_504.0
_QUEUED = 3
Float16 = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class CacheContents:
    """Arrays that are written in addition to the logits; the same for every view.

    labels (N,) int64, keys and pixels (N, 16) uint8, head_weight (C, D) and head_bias (C,) float32.
    """

    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    head_weight: Float32
    head_bias: Float32


@dataclass(frozen=True, order=True)
class Unit:
    """The rows of one shard in one view: the unit that is computed and stored at once."""

    view: int
    shard: int


@dataclass(frozen=True, kw_only=True)
class CacheWriter:
    """A cache that is being written."""

    store: ObjectStore
    manifest: CacheManifest
    joined: bool
    """True if the cache existed, unfinished."""
    _specs: Mapping[str, ArraySpec] = field(repr=False)
    _arrays: "NewArrays" = field(repr=False)
    _known: dict[str, Receipt] = field(default_factory=dict, repr=False)

    @classmethod
    def begin(
        cls,
        store: ObjectStore,
        *,
        identity: CacheIdentity,
        shape: CacheShape,
        layout: CacheLayout,
        contents: CacheContents,
    ) -> Self:
        """Start a cache, or join one of the same identity that is not finished.

        An existing cache keeps its layout; the argument is then ignored.

        Raises:
            ArtefactMismatch: if ``store`` holds another cache.
        """
        from pipeline.artefacts.zarr_store import NewArrays  # slow to load

        manifest, is_new = _manifest(store, identity=identity, shape=shape, layout=layout)
        specs = array_specs(manifest)
        writer = cls(
            store=store,
            manifest=manifest,
            joined=not is_new,
            _specs=specs,
            _arrays=NewArrays(
                specs,
                group_attributes(manifest),
                group_texts(manifest),
                lambda key, data: store.create(f"{DATA}/{key}", data),
            ),
        )
        arrays: dict[str, NDArray[np.generic]] = {
            LABELS: contents.labels.astype(np.int32),
            KEYS: contents.keys,
            PIXELS: contents.pixels,
            HEAD_WEIGHT: contents.head_weight,
            HEAD_BIAS: contents.head_bias,
        }
        for name, values in arrays.items():
            writer._store_whole(name, values)
        return writer

    @property
    def units(self) -> list[Unit]:
        """All units of the cache, view by view."""
        views, shards = range(self.manifest.shape.num_views), range(self.manifest.num_shards)
        return [Unit(view, shard) for view in views for shard in shards]

    def missing(self) -> list[Unit]:
        """Units that are not stored yet."""
        kept = self.store.sizes("receipts")
        return [unit for unit in self.units if not self._receipts_of(unit) <= kept.keys()]

    def has(self, unit: Unit) -> bool:
        """True if a unit is stored by now, by any worker."""
        return all(self.store.size(key) is not None for key in self._receipts_of(unit))

    def write(self, unit: Unit, arrays: Mapping[str, NDArray[np.generic]], note: Note) -> None:
        """Store a unit: every array's object, then its receipt.

        Raises:
            ArtefactMismatch: if another worker stored other numbers.
            PipelineError: if the store cannot be written.
        """
        rows = self.manifest.rows_of(unit.shard)
        assert set(arrays) == {spec.name for spec in view_arrays(self.manifest)}
        for name, values in arrays.items():
            assert len(values) == rows[1] - rows[0]
            self._store(name, unit, values, rows=rows, note=note)

    def reader(self) -> ArrayReader:
        """Reader of the units that are stored already."""
        return ArrayReader(
            store=self.store,
            manifest=self.manifest,
            specs=self._specs,
            facts=lambda *name: self._receipt(*name).facts,
        )

    def notes(self) -> list[Note]:
        """The notes of all units; every unit must be stored."""
        self._read_receipts()
        first = view_arrays(self.manifest)[0].name  # the others carry the same note
        return [self._receipt(first, unit.view, unit.shard).note for unit in self.units]

    def seal(self, summary: CacheSummary) -> Seal:
        """Mark the cache as complete.

        Raises:
            ArtefactNotFound: if a receipt is missing.
            ArtefactMismatch: if an object is missing or of another size.
        """
        self._read_receipts()
        receipts = {
            receipt_key(*name): self._receipt(*name).facts for name in object_names(self.manifest)
        }
        self._require_sizes(receipts)
        return create_seal(self.store, Seal.of(sealed_metadata(self.manifest), receipts, summary))

    def _require_sizes(self, receipts: Mapping[str, Facts]) -> None:
        sizes = self.store.sizes()
        for name, view, shard in object_names(self.manifest):
            key = object_key(self._specs[name], view, shard)
            expected = receipts[receipt_key(name, view, shard)].bytes
            if sizes.get(key) != expected:
                raise Damaged(
                    f"{self.store.url}/{key} has {sizes.get(key, 0):,} bytes (expected "
                    f"{expected:,}). Remove it and its receipt, and run the same command again."
                )

    def _receipts_of(self, unit: Unit) -> set[str]:
        return {
            receipt_key(spec.name, unit.view, unit.shard) for spec in view_arrays(self.manifest)
        }

    def _receipt(self, name: str, view: int, shard: int) -> Receipt:
        key = receipt_key(name, view, shard)
        if key not in self._known:
            self._known[key] = read_receipt(self.store, key)
        return self._known[key]

    def _read_receipts(self) -> None:
        """Read all of them, many at once; they never change."""
        names = object_names(self.manifest)
        for _ in read_in_threads(lambda n: self._receipt(*n), names, at_once=SMALL_AT_ONCE):
            pass

    def _store(
        self,
        name: str,
        unit: Unit,
        values: NDArray[np.generic],
        *,
        rows: tuple[int, int],
        note: Note,
    ) -> None:
        least, most = extremes(values)
        if not np.isfinite((least, most)).all():
            raise PipelineError(
                f"{name} of view {unit.view}, rows {rows[0]} to {rows[1] - 1}, contains NaN or "
                "infinity (expected finite values). Check the teacher's checkpoint and "
                "`mean`/`std`."
            )
        created = self._created(name, unit, values)
        facts = Facts(bytes=created.bytes, sha256=created.sha256, rows=rows, min=least, max=most)
        key = receipt_key(name, unit.view, unit.shard)
        create_receipt(self.store, key, Receipt.of(facts, note))

    def _store_whole(self, name: str, values: NDArray[np.generic]) -> None:
        """Store an array of one chunk, or check that the stored one is the same."""
        from pipeline.artefacts.zarr_store import encode

        rows, key = (0, len(values)), receipt_key(name, 0, 0)
        if self.store.size(key) is None:
            self._store(name, Unit(view=0, shard=0), values, rows=rows, note=Note())
        elif self._receipt(name, 0, 0).facts != facts_of(
            encode(self._specs[name], values), values, rows=rows
        ):
            raise ArtefactMismatch(
                f"{self.store.url} was begun with the samples in another order than now: {name} "
                "differ. Nothing was overwritten: prepare the images with the same "
                "`prepare.order`, or choose another place with `caches`."
            )

    def _created(self, name: str, unit: Unit, values: NDArray[np.generic]) -> "Created":
        view, shard = unit.view, unit.shard
        try:
            return self._arrays.write(name, view, shard, values)
        except ArtefactMismatch as error:
            if self.store.size(receipt_key(name, view, shard)) is not None:
                raise
            key = object_key(self._specs[name], view, shard)
            raise ArtefactMismatch(
                f"{self.store.url}/{key} exists with other bytes and without a receipt: a worker "
                "on other hardware or with other versions was killed, or is running. Nothing was "
                "overwritten. When no worker is running, run `heartcut cache gc FOLDER "
                "--older-than 0 --delete` and the same command again."
            ) from error


def _manifest(
    store: ObjectStore, *, identity: CacheIdentity, shape: CacheShape, layout: CacheLayout
) -> tuple[CacheManifest, bool]:
    """The stored manifest or a new one, and True if it is new."""
    wanted = CacheManifest(id=identity.id, identity=identity, shape=shape, layout=layout)
    array_specs(wanted)  # rejects absurd sizes before anything is written
    try:
        is_new = create_record(store, MANIFEST, wanted)
    except ArtefactMismatch:  # it exists, unfinished and with another layout
        found = read_manifest(store)
    else:
        return wanted, is_new
    if (found.identity, found.shape) != (wanted.identity, wanted.shape):
        raise ArtefactMismatch(
            f"{store.url} holds another teacher cache: id {found.id[:12]} (expected "
            f"{wanted.id[:12]}). Choose another place."
        )
    return found, False


@contextmanager
def writing_behind(
    writer: CacheWriter, *, written: Callable[[Unit], None] = lambda _: None
) -> Iterator[Callable[..., None]]:
    """Yield a `CacheWriter.write` that returns at once; at most three units wait to be written.

    So the teacher computes while its last outputs are compressed and stored. An error of the writer
    is raised by the next call, or at the end. ``written`` is called with each unit that was stored.
    """

    def store(unit: Unit, arrays: Mapping[str, NDArray[np.generic]], note: Note) -> None:
        writer.write(unit, arrays, note)
        written(unit)

    with ThreadPoolExecutor(max_workers=_QUEUED, thread_name_prefix="cache-writer") as pool:
        waiting: list[Future[None]] = []

        def write(unit: Unit, arrays: Mapping[str, NDArray[np.generic]], note: Note) -> None:
            while len(waiting) >= _QUEUED or (waiting and waiting[0].done()):
                waiting.pop(0).result()
            waiting.append(pool.submit(store, unit, arrays, note))

        yield write
        for future in waiting:
            future.result()


def as_float16(rows: Float32, *, name: str, view: int, first_sample: int) -> Float16:
    """Convert ``rows`` (B, C) or (B, D) to float16, as they are stored.

    Raises:
        PipelineError: if a value is not finite or does not fit float16; it names the sample.
    """
    peak = np.abs(rows).max(axis=1)
    if not (peak <= _FLOAT16_MAX).all():  # false for NaN too
        bad = int(np.flatnonzero(~(peak <= _FLOAT16_MAX))[0])
        raise PipelineError(
            f"the teacher's {name} of sample {first_sample + bad} in view {view} reach "
            f"{peak[bad]} (expected finite values up to {_FLOAT16_MAX:.0f}). Check the "
            "checkpoint and `mean`/`std`, or try `--precision fp32`."
        )
    return rows.astype(np.float16)
