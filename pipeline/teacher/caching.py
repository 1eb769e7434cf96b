"""The teacher's one pass: every view of a beton through the frozen network, into a cache.

The work is divided into units, the rows of one shard in one view. Any worker can compute any unit,
with bit-identical results on the same hardware, and the last one to finish seals the cache.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts.cache.arrays import (
    FEATURES,
    LOGITS,
    LOGSUMEXP,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
)
from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.record import CacheIdentity, CacheLayout, CacheShape, Fidelity
from pipeline.artefacts.cache.writer import (
    CacheContents,
    CacheWriter,
    Unit,
    as_float16,
    writing_behind,
)
from pipeline.artefacts.dataset import Beton
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.unfinished_rows import KeptRows, ShardRows, UnfinishedRows
from pipeline.data.loaders import BatchLoader
from pipeline.data.supervision import Batch
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch, PipelineError
from pipeline.methods.sparse_logits import reconstruct, summarise
from pipeline.runtime.device import Runtime
from pipeline.runtime.progress import Progress, progress
from pipeline.runtime.stopping import catching_stop_signals
from pipeline.teacher.computed_rows import ComputedRows
from pipeline.teacher.frozen import Teacher, head_logits, teacher_features
from pipeline.teacher.summary import storage_fidelity, summarise_cache

logger = logging.getLogger(__name__)

UnitChoice: TypeAlias = Callable[[list[Unit]], list[Unit]]
"""Function from all units to those that a worker computes."""
Arrays: TypeAlias = dict[str, NDArray[np.generic]]

FIDELITY_ROWS = 1024
"""Rows of each unit that fidelity is measured on."""
FIDELITY_TEMPERATURES = (1.0, 4.0)
HEAD_ROWS = 512
"""Rows that the head is run on at once, counted from the start of a unit.

A matrix product rounds differently for other numbers of rows, so the number is independent of the
network's batch."""
LEAST_IMAGES = 16
"""Images that a small batch is filled up to, but not above the usual batch.

A CPU runs few images with other kernels, which round differently. A last batch of one image would
have other bits than the same image among others."""
HEAD_TOLERANCE = 0.02
"""Allowed error of the head of the stored features, as a share of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class TeacherPass:
    """A teacher and the images of its one pass."""

    teacher: Teacher
    loader: BatchLoader
    """Loader of all of `beton` in sequential order."""
    beton: Beton
    views: Views
    """The views to store besides the clean one."""
    runtime: Runtime
    held_out: NDArray[np.int64]
    """Sample indices whose accuracy is computed separately, (M,) int64; may be empty."""
    unfinished: UnfinishedRows | None = None
    """Place for the rows of units that are not finished; None: they are lost at a stop."""


def cache_shape(teacher: Teacher, *, beton: Beton, views: Views) -> CacheShape:
    """Sizes of the arrays that `cache_views` stores."""
    head = teacher.model.head
    return CacheShape(
        num_views=views.num_views + 1,
        num_samples=beton.num_samples,
        num_classes=head.out_features,
        num_features=head.in_features,
    )


def cache_contents(teacher: Teacher, beton: Beton) -> CacheContents:
    """Arrays that are stored besides the views: labels, keys, pixel hashes and the head."""
    head = teacher.model.head
    return CacheContents(
        labels=beton.samples.labels,
        keys=beton.samples.keys,
        pixels=beton.samples.pixels,
        head_weight=_numpy(head.weight.detach()),
        head_bias=_numpy(head.bias.detach()),
    )


def cache_views(
    store: ObjectStore,
    planned: TeacherPass,
    *,
    identity: CacheIdentity,
    layout: CacheLayout,
    share: UnitChoice | None = None,
) -> int:
    """Compute the missing units of a cache; seal it when none is missing.

    Args:
        store: the place of the cache, existing or new.
        planned: the teacher and its images.
        identity: result of `cache_identity` for the pass.
        layout: division of a new cache into objects; an existing cache keeps its own.
        share: the units that this worker computes; None: all missing ones.
    Returns:
        Number of missing units in other workers' shares; 0 if the cache is sealed.
    Raises:
        PipelineError: if an output is not finite or does not fit float16, or the disk is full.
        ArtefactMismatch: if the head of the features does not give the logits, or another worker
            stored other numbers.
    """
    teacher, beton = planned.teacher, planned.beton
    writer = CacheWriter.begin(
        store,
        identity=identity,
        shape=cache_shape(teacher, beton=beton, views=planned.views),
        layout=layout,
        contents=cache_contents(teacher, beton),
    )
    worker = _Worker(planned=planned, writer=writer)
    with _reporting_what_is_kept(worker):
        worker.compute(share)
        left = len(writer.missing())
        if left == 0:
            summary = summarise_cache(
                writer,
                labels=beton.samples.labels,
                held_out=planned.held_out,
                target_in_sample=teacher.target_in_sample,
                description=teacher.description,
            )
            writer.seal(summary)
            if planned.unfinished is not None:
                planned.unfinished.remove()
    return left


@contextmanager
def _reporting_what_is_kept(worker: "_Worker") -> Iterator[None]:
    writer = worker.writer
    try:
        yield
    except BaseException:
        total = left = len(writer.units)
        with suppress(PipelineError):  # the store itself may have failed
            left = len(writer.missing())
        place = worker.planned.unfinished
        kept = 0 if place is None else place.num_rows
        if 0 < left < total or kept:
            logger.warning(
                "%s keeps %d of %d shards%s: run the same command again to compute the %d left",
                writer.store.url,
                total - left,
                total,
                f" and {kept:,} images of unfinished ones" if kept else "",
                left,
            )
        raise


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """Worker that runs the teacher over a share of the units."""

    planned: TeacherPass
    writer: CacheWriter

    def compute(self, share: UnitChoice | None) -> None:
        """Compute and store every unit of the share that is not stored yet."""
        missing = self.writer.missing()
        mine = set(missing if share is None else share(self.writer.units))
        todo = [unit for unit in self._apart(missing, share) if unit in mine]
        if len(missing) < len(self.writer.units):
            logger.info(
                "%s: %d of %d shards are kept already",
                self.writer.store.url,
                len(self.writer.units) - len(missing),
                len(self.writer.units),
            )
        total = sum(len(self._rows(unit)) for unit in todo)
        with (
            progress(f"teacher on {self.planned.loader.name}", total=total, unit="images") as bar,
            writing_behind(self.writer, written=self._forget) as write,
        ):
            for unit in todo:
                if self.writer.has(unit):  # another worker was faster
                    bar.skip(len(self._rows(unit)))
                    self._forget(unit)
                else:
                    write(unit, *self._outputs(unit, bar))

    def _apart(self, missing: list[Unit], share: UnitChoice | None) -> list[Unit]:
        """Missing units, in a random order if other workers may compute the same cache."""
        if share is None and self.writer.joined:
            return random.Random().sample(missing, len(missing))
        return missing

    def _rows(self, unit: Unit) -> ShardRows:
        start, stop = self.writer.manifest.rows_of(unit.shard)
        return ShardRows(view=unit.view, start=start, stop=stop)

    def _forget(self, unit: Unit) -> None:
        if self.planned.unfinished is not None:
            self.planned.unfinished.forget(self._rows(unit))

    @torch.inference_mode()
    def _outputs(self, unit: Unit, bar: Progress) -> tuple[Arrays, Note]:
        """Arrays to store for a unit, and its note."""
        rows = self._rows(unit)
        computed = self._features(rows, bar)
        features = computed.features
        logits = self._logits(features)
        targets = torch.from_numpy(self.planned.beton.samples.labels[rows.start : rows.stop])
        arrays, fidelity = self._stored(unit, logits, features, targets)
        return arrays, Note(
            device=self.planned.runtime.description,
            seconds=computed.seconds,
            fidelity=fidelity,
            head_error=self._head_error(logits[:FIDELITY_ROWS], features[:FIDELITY_ROWS]),
        )

    def _features(self, rows: ShardRows, bar: Progress) -> KeptRows:
        """Features of all rows of a unit: those that are kept, and the others computed now."""
        teacher, runtime = self.planned.teacher, self.planned.runtime
        normalise = teacher.normaliser(runtime.device)
        with self._keeping(rows, bar) as unit, catching_stop_signals() as request:
            batches = self.planned.loader.view(
                rows.view, rows=slice(rows.start + unit.num_rows, rows.stop)
            )
            with closing(batches):
                for batch in batches if unit.num_rows < len(rows) else ():
                    whole = self._filled_up(batch)
                    features = teacher_features(teacher.model, normalise, whole, runtime=runtime)
                    unit.add(features[: len(batch)].cpu())
                    bar.advance(len(batch), note=self._place(rows))
                    request.raise_if_stopped()
        return unit.all_rows()

    def _filled_up(self, batch: Batch) -> Batch:
        """The batch, or its images again and again if it is a small one."""
        least = min(LEAST_IMAGES, max(2, self.planned.loader.batch_size))
        if len(batch) >= least:
            return batch
        images = torch.cat([batch.images] * -(-least // len(batch)))[:least]
        return replace(batch, images=images)

    def _place(self, rows: ShardRows) -> str:
        """The view at work, counted from 1, for the bar."""
        return f"view {rows.view + 1} of {self.writer.manifest.shape.num_views}"

    @contextmanager
    def _keeping(self, rows: ShardRows, bar: Progress) -> Iterator[ComputedRows]:
        """Rows of a unit that are written to a file now and then, and at a stop."""
        place = self.planned.unfinished
        unit = ComputedRows(rows, place, [] if place is None else place.read(rows))
        if unit.num_rows:
            bar.skip(unit.num_rows)
            logger.info(
                "view %d, samples %s to %s: %s images are kept already",
                rows.view,
                f"{rows.start:,}",
                f"{rows.stop - 1:,}",
                f"{unit.num_rows:,}",
            )
        try:
            yield unit
        except BaseException:
            unit.keep()
            raise

    def _logits(self, features: Tensor) -> Tensor:
        """Logits of all rows of a unit."""
        model, device = self.planned.teacher.model, self.planned.runtime.device
        blocks = torch.split(features, HEAD_ROWS)
        return torch.cat([head_logits(model, block.to(device)).cpu() for block in blocks])

    def _stored(
        self, unit: Unit, logits: Tensor, features: Tensor, labels: Tensor
    ) -> tuple[Arrays, list[Fidelity]]:
        identity = self.writer.manifest.identity
        first = self.writer.manifest.rows_of(unit.shard)[0]

        def half(rows: Tensor, name: str) -> NDArray[np.float16]:
            return as_float16(_numpy(rows), name=name, view=unit.view, first_sample=first)

        stored = half(logits, LOGITS)
        if identity.top_k == 0:
            arrays: Arrays = {LOGITS: stored}
            kept = {tau: torch.from_numpy(stored[:FIDELITY_ROWS]) for tau in FIDELITY_TEMPERATURES}
        else:
            # From the rounded logits, so that the listed logits and the sum of all are consistent.
            sparse = summarise(
                torch.from_numpy(stored),
                labels,
                top_k=identity.top_k,
                temperatures=identity.temperatures,
            )
            arrays = {
                TOP_CLASS: sparse.classes.numpy().astype(np.uint16),
                TOP_LOGIT: sparse.logits.numpy(),
                TARGET_LOGIT: sparse.target.numpy(),
                LOGSUMEXP: sparse.logsumexp.numpy(),
            }
            kept = {
                tau: reconstruct(
                    sparse.rows(FIDELITY_ROWS),
                    labels[:FIDELITY_ROWS],
                    num_classes=logits.shape[1],
                    temperature=tau,
                )
                for tau in identity.temperatures
            }
        if identity.features:
            arrays[FEATURES] = half(features, FEATURES)
        exact = logits[:FIDELITY_ROWS]
        return arrays, [
            storage_fidelity(exact, rows, temperature=tau) for tau, rows in kept.items()
        ]

    def _head_error(self, logits: Tensor, features: Tensor) -> float:
        """Largest error of the head of the features, rounded if they are stored, in a logit.

        Raises:
            ArtefactMismatch: if the features are not the classifier's input.
        """
        teacher = self.planned.teacher
        head = teacher.model.head
        weight, bias = head.weight.float().cpu(), head.bias.float().cpu()
        kept = self.writer.manifest.identity.features
        read = features.half().float() if kept else features
        error = (F.linear(read, weight, bias) - logits).abs().max().item()
        if not error <= HEAD_TOLERANCE * max(1.0, logits.abs().max().item()):
            raise ArtefactMismatch(
                f"the head of {teacher.description} does not give its logits from its "
                f"features: they differ by {error:.3g}. `features` must return the head's input."
            )
        return error


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
