"""Batches from betons: the only module that iterates FFCV.

FFCV 1.0.2 reuses the memory of a batch, drops the last batch, and cannot gather float16. Here every
sample comes once, and soft labels are joined by sample index. `ffcv_compat` handles epochs that
fail or are left early.

A batch is borrowed: it is valid until the next one is requested.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import IMAGE, INDEX, LABEL, Beton
from pipeline.data.device_batches import ResidentTables, has_room, on_device
from pipeline.data.ffcv_compat import (
    EndingEpoch,
    IntDecoder,
    Loader,
    OrderOption,
    PipelineSpec,
    ToTensor,
)
from pipeline.data.gather_operations import Flags, Gather
from pipeline.data.replay_operations import ShownViews, shown_views
from pipeline.data.supervision import Batch, Supervision, gathers, require_fitting
from pipeline.data.view_specs import Views, views_of_epoch
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch
from pipeline.runtime.device import num_cores
from pipeline.runtime.ranks import ALONE, Ranks

SOFT_LABEL, SELECTED, FEATURE = "soft_label", "selected", "feature"
CLEAN = ViewSpec()
HOST = torch.device("cpu")


class BatchLoader:
    """Epochs of batches of one beton, one at a time.

    Batches are on ``device``; soft labels stay there if its memory has room for them.

    With several ranks, each takes its part of every batch, so together they see the batches that
    one process would see. A rank may get nothing of the last batch.

    With ``skips_single``, an epoch ends before a last batch of a single sample. In a random order
    it is another sample in every epoch.

    Raises:
        ArtefactMismatch: if the supervision is of other samples or views; in the first epoch, if a
            label differs from the supervision's.
    """

    # As for torch's DataLoader, each parameter is an independent choice.
    def __init__(
        self,
        beton: Beton,
        *,
        batch_size: int,
        view_spec: Views = CLEAN,
        rows: NDArray[np.int64] | None = None,
        order: Literal["sequential", "random"] = "sequential",
        seed: int = 0,
        workers: int = 0,
        supervision: Supervision | None = None,
        device: torch.device = HOST,
        ranks: Ranks = ALONE,
        skips_single: bool = False,
    ) -> None:
        assert batch_size % ranks.world == 0, "every rank takes an equal part of a batch"
        if supervision is not None:
            require_fitting(supervision, beton, view_spec)
        self._beton = beton
        self._spec = view_spec
        self._seed = seed
        self._batch_size = batch_size
        self._ranks = ranks
        self._supervision = supervision
        self._rows = np.arange(beton.num_samples) if rows is None else rows
        self._skips_single = skips_single and len(self._rows) % batch_size == 1
        self._shown = shown_views(view_spec, beton)
        self._device = device
        self._resident: ResidentTables | None = None
        gathered = supervision
        if supervision is not None and has_room(supervision, device):
            self._resident, gathered = ResidentTables.of(supervision, device), None
        self._gathers = gathers(gathered)
        self._labels_checked = supervision is None
        self._is_open = False
        cores = num_cores()
        self._loader = _new_loader(
            beton,
            self._shown,
            gathered,
            self._gathers,
            batch_size=batch_size // ranks.world,
            num_workers=min(workers or cores, cores),
            order=OrderOption.RANDOM if order == "random" else OrderOption.SEQUENTIAL,
            seed=seed << 32,  # FFCV shuffles by seed + epoch, so adjacent seeds would overlap
            indices=self._rows,
        )

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks."""
        return len(self._rows) - self._skips_single

    @property
    def batch_size(self) -> int:
        """Samples in a batch, over all ranks."""
        return self._batch_size

    @property
    def name(self) -> str:
        """Readable name of the beton."""
        return self._beton.path.name

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-self.num_samples // self._batch_size)

    def epoch(self, epoch: int, *, skip: int = 0, size: int | None = None) -> Generator[Batch]:
        """Batches of epoch ``epoch``, counted from 0: its order, its views, its soft labels.

        Args:
            epoch: number of the epoch, from 0.
            skip: number of first batches to leave out, to resume training within an epoch.
            size: side in pixels of random resized crops, if another one than the spec's.
        """
        keys = self._beton.samples.keys
        numbers = views_of_epoch(self._spec, keys, epoch=epoch, seed=self._seed)
        self._loader.next_epoch = epoch
        order = self._loader.next_traversal_order()[: self.num_samples][skip * self._batch_size :]
        num_batches = -(-len(order) // self._batch_size)
        return self._batches(
            numbers,
            self._part_of_batches(order),
            num_batches=num_batches,
            is_whole=skip == 0,
            size=size,
        )

    def view(self, view: int, *, rows: slice = slice(None)) -> Generator[Batch]:
        """Batches of all rows in one view, or of the slice ``rows`` if the order is sequential.

        With several ranks, each takes a contiguous part.
        """
        numbers = np.full(self._beton.num_samples, view, dtype=np.int64)
        self._loader.next_epoch = 0
        order = self._loader.next_traversal_order()[rows]
        own = order[self._ranks.part(len(order))]
        num_batches = max(-(-len(own) // self._loader.batch_size), int(self._ranks.are_many))
        return self._batches(numbers, own, num_batches=num_batches, is_whole=rows == slice(None))

    def _part_of_batches(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of every batch; its part of the last one may be empty."""
        starts = range(0, len(order), self._batch_size)
        batches = [order[start : start + self._batch_size] for start in starts]
        return np.concatenate([order[:0], *(b[self._ranks.part(len(b))] for b in batches)])

    def _batches(
        self,
        numbers: NDArray[np.int64],
        order: NDArray[np.int64],
        *,
        num_batches: int,
        is_whole: bool,
        size: int | None = None,
    ) -> Generator[Batch]:
        """Batches of ``order``, and an empty batch if other ranks have one more."""
        assert not self._is_open, "one epoch at a time: close the last one before the next"
        self._shown.choose(numbers, seed=self._seed, size=size)
        join = self._supervise(numbers)
        self._is_open = True
        try:
            batches = self._on_host(order, num_batches=num_batches)
            yield from on_device(batches, self._device, join=join)
            self._labels_checked = self._labels_checked or is_whole
        finally:
            self._is_open = False

    def _supervise(self, numbers: NDArray[np.int64]) -> Callable[[Batch], Batch]:
        """Set the views to gather; return the function that joins rows on the device."""
        if self._supervision is None:
            return _as_it_is
        slots = numbers - 1 if self._supervision.by_view else np.zeros_like(numbers)
        assert slots.min() >= 0, "the clean view has no slot among soft labels by view"
        for gather in self._gathers:
            gather.slots[:] = slots
        return _as_it_is if self._resident is None else self._resident.joiner(slots)

    def _on_host(self, order: NDArray[np.int64], *, num_batches: int) -> Generator[Batch]:
        """Batches from FFCV, with checked labels."""
        with closing(EndingEpoch(self._loader, order)) as batches:
            for arrays in batches:
                num_batches -= 1
                yield self._checked(_as_batch(arrays))
        if num_batches > 0:
            yield self._empty()

    def _empty(self) -> Batch:
        """An empty batch with the shapes of the others."""
        with closing(EndingEpoch(self._loader, self._rows[:1])) as batches:
            return _as_batch([array[:0].clone() for array in next(batches)])

    def _checked(self, batch: Batch) -> Batch:
        """In the first epoch, compare each label with the label of the soft label."""
        if self._labels_checked or self._supervision is None:
            return batch
        expected = self._supervision.labels[batch.indices.numpy()]
        found = batch.labels.numpy()
        if not np.array_equal(found, expected):
            first = int(np.flatnonzero(found != expected)[0])
            raise ArtefactMismatch(
                f"sample {int(batch.indices[first])} of {self._beton.path} has label "
                f"{found[first]} (expected {expected[first]}, as in the soft labels). "
                "The soft labels are of other data: run `heartcut select` on this beton's cache."
            )
        return batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _as_batch(arrays: Sequence[Tensor]) -> Batch:
    images, labels, indices = arrays[:3]
    soft_labels, selected = arrays[3:5] if len(arrays) >= 5 else (None, None)
    return Batch(
        images=images.permute(0, 3, 1, 2),
        labels=labels.flatten(),
        indices=indices.flatten(),
        soft_labels=soft_labels,
        selected=selected,
        features=arrays[5] if len(arrays) == 6 else None,
    )


def _new_loader(
    beton: Beton,
    shown: ShownViews,
    supervision: Supervision | None,
    tables: Sequence[Gather],
    **settings: Any,
) -> Loader:
    """An FFCV loader whose outputs are in the order that `_as_batch` reads."""
    index = IntDecoder()
    pipelines: dict[str, Any] = {
        IMAGE: shown.pipeline(index),
        LABEL: [IntDecoder(), ToTensor()],
        INDEX: [index, ToTensor()],
    }
    if supervision is not None:
        pipelines[SOFT_LABEL] = PipelineSpec(index, transforms=[tables[0], ToTensor()])
        pipelines[SELECTED] = PipelineSpec(
            index, transforms=[Flags(supervision.selected), ToTensor()]
        )
        if supervision.features:
            pipelines[FEATURE] = PipelineSpec(index, transforms=[tables[1], ToTensor()])
    loader = Loader(
        str(beton.path), pipelines=pipelines, drop_last=False, os_cache=True, **settings
    )
    shown.attach(loader)
    return loader
