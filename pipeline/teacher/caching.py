"""The teacher's one pass: every view of a beton through the frozen network, into a cache.

The work is divided into units, the rows of one shard in one view. Any worker can compute any unit,
with bit-identical results on the same hardware, and the last one to finish seals the cache.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
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
from pipeline.data.loaders import BatchLoader
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch, PipelineError
from pipeline.methods.sparse_logits import reconstruct, summarise
from pipeline.runtime.device import Runtime
from pipeline.runtime.progress import Progress, progress
from pipeline.teacher.frozen import Teacher, teacher_outputs
from pipeline.teacher.summary import storage_fidelity, summarise_cache

logger = logging.getLogger(__name__)

UnitChoice: TypeAlias = Callable[[list[Unit]], list[Unit]]
"""Function from all units to those that a worker computes."""
Arrays: TypeAlias = dict[str, NDArray[np.generic]]

FIDELITY_ROWS = 1024
"""Rows of each unit that fidelity is measured on."""
FIDELITY_TEMPERATURES = (1.0, 4.0)
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
    with _reporting_missing_shards(writer):
        _Worker(planned=planned, writer=writer).compute(share)
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
    return left


@contextmanager
def _reporting_missing_shards(writer: CacheWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        total = left = len(writer.units)
        with suppress(PipelineError):  # the store itself may have failed
            left = len(writer.missing())
        if 0 < left < total:
            logger.warning(
                "%s keeps %d of %d shards: run the same command again to compute the %d left",
                writer.store.url,
                total - left,
                total,
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
        total = sum(self._num_rows(unit) for unit in todo)
        with (
            progress(f"teacher on {self.planned.loader.name}", total=total, unit="images") as bar,
            writing_behind(self.writer) as write,
        ):
            for unit in todo:
                if self.writer.has(unit):  # another worker was faster
                    bar.advance(self._num_rows(unit))
                else:
                    write(unit, *self._outputs(unit, bar))

    def _apart(self, missing: list[Unit], share: UnitChoice | None) -> list[Unit]:
        """Missing units, in a random order if other workers may compute the same cache."""
        if share is None and self.writer.joined:
            return random.Random().sample(missing, len(missing))
        return missing

    def _num_rows(self, unit: Unit) -> int:
        start, stop = self.writer.manifest.rows_of(unit.shard)
        return stop - start

    @torch.inference_mode()
    def _outputs(self, unit: Unit, bar: Progress) -> tuple[Arrays, Note]:
        """Arrays to store for a unit, and its note."""
        started = monotonic()
        start, stop = self.writer.manifest.rows_of(unit.shard)
        teacher, runtime = self.planned.teacher, self.planned.runtime
        normalise = teacher.normaliser(runtime.device)
        logits, features = [], []
        for batch in self.planned.loader.view(unit.view, rows=slice(start, stop)):
            some_logits, some_features = teacher_outputs(
                teacher.model, normalise, batch, runtime=runtime
            )
            logits.append(some_logits.cpu())
            features.append(some_features.cpu())
            bar.advance(len(batch), note=f"view {unit.view}")
        all_logits, all_features = torch.cat(logits), torch.cat(features)
        targets = torch.from_numpy(self.planned.beton.samples.labels[start:stop])
        arrays, fidelity = self._stored(unit, all_logits, all_features, targets)
        return arrays, Note(
            device=runtime.description,
            seconds=monotonic() - started,
            fidelity=fidelity,
            head_error=self._head_error(all_logits[:FIDELITY_ROWS], all_features[:FIDELITY_ROWS]),
        )

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
