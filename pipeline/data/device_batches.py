"""Batches on the device that trains: moved there ahead of time, soft labels joined there.

Where the tables of soft labels fit into the device's memory they lie there, and a batch needs its
sample indices only; otherwise the loader gathers rows into pinned memory and they travel with the
images, as bytes. On a CPU a batch is where it should be already.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.supervision import Batch, Supervision

MOST_OF_FREE_MEMORY: Final = 0.25
"""The rest is the network's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentTables:
    """A supervision's tables in a device's memory."""

    soft_labels: Tensor
    """(V, N, W), 16 bits each, as stored."""
    selected: Tensor
    """(N,) bool"""
    features: Tensor | None
    """(V, N, D) float16"""

    @classmethod
    def of(cls, supervision: Supervision, device: torch.device) -> Self:
        """Copy the tables to a device."""
        features = supervision.features
        return cls(
            soft_labels=_stacked(supervision.soft_labels, device),
            selected=torch.from_numpy(supervision.selected).to(device),
            features=_stacked(features, device) if features else None,
        )

    def joiner(self, slots: NDArray[np.int64]) -> Callable[[Batch], Batch]:
        """What adds its rows to a batch; ``slots`` are the views of all samples, (N,)."""
        device = self.selected.device
        on_device = torch.from_numpy(slots).to(device)

        def join(batch: Batch) -> Batch:
            rows = batch.indices.to(device, non_blocking=True)
            views = on_device[rows]
            return replace(
                batch,
                soft_labels=self.soft_labels[views, rows],
                selected=self.selected[rows],
                features=None if self.features is None else self.features[views, rows],
            )

        return join


def has_room(supervision: Supervision, device: torch.device) -> bool:
    """True if the device is an accelerator with room for the tables."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return table_bytes(supervision) <= MOST_OF_FREE_MEMORY * free


def table_bytes(supervision: Supervision) -> int:
    """What a supervision's tables take."""
    tables = [*supervision.soft_labels, *supervision.features]
    return sum(table.nbytes for table in tables) + supervision.selected.nbytes


def on_device(
    batches: Generator[Batch],
    device: torch.device,
    *,
    join: Callable[[Batch], Batch] = lambda batch: batch,
) -> Generator[Batch]:
    """The batches on a device, the next one under way while one is used.

    A batch's memory is the loader's until the next one is asked for, so a copy must have ended by
    then; it has a stream of its own, so that it ends while the network still computes.

    Args:
        batches: of a loader.
        device: on a CPU, batches stay where they are.
        join: called with every batch on the device.
    """
    with closing(batches):
        if device.type == "cuda":
            yield from _prefetched(batches, device, join)
        else:
            yield from map(join, batches)


def _prefetched(
    batches: Generator[Batch], device: torch.device, join: Callable[[Batch], Batch]
) -> Generator[Batch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = join(_moved(batch, device))
        copied = stream.record_event()
        if ready is not None:
            yield ready
        used_by = torch.cuda.current_stream(device)
        used_by.wait_event(copied)
        for tensor in _tensors(moved):
            if tensor.device == device:
                tensor.record_stream(used_by)
        copied.synchronize()
        ready = moved
    if ready is not None:
        yield ready


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A copy on the device, on its way; the indices stay with the host, in memory of their own."""
    values = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    return replace(batch, **{**values, "indices": batch.indices.clone()})


def _tensors(batch: Batch) -> list[Tensor]:
    values = [getattr(batch, field.name) for field in fields(batch)]
    return [value for value in values if value is not None]


def _stacked(tables: Sequence[NDArray[np.generic]], device: torch.device) -> Tensor:
    """(V, N, W) on the device; equal tables are copied once each, view by view."""
    first = torch.from_numpy(np.asarray(tables[0][:0]))
    shape = (len(tables), *tables[0].shape)
    stacked = torch.empty(shape, dtype=first.dtype, device=device)
    for slot, table in enumerate(tables):
        stacked[slot].copy_(torch.from_numpy(np.ascontiguousarray(table)))
    return stacked
