"""Batches on the training device: copied there ahead of time and joined with soft labels there.

If the tables of soft labels fit into the device's memory, they stay there, and a batch needs only
its sample indices. Otherwise the loader gathers their rows into pinned memory and copies them with
the images, as bytes. On a CPU nothing is moved.
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
"""Share of the free memory that the tables may use; the rest is for the network."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentTables:
    """A supervision's tables in a device's memory."""

    soft_labels: Tensor
    """(V, N, W), 16 bits each, as stored."""
    selected: Tensor
    """True for samples to distil, (N,) bool."""
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
        """Function that adds the rows to a batch; ``slots`` are the views of all samples, (N,)."""
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
    """Bytes that a supervision's tables take on a device."""
    tables = [*supervision.soft_labels, *supervision.features]
    return sum(table.nbytes for table in tables) + supervision.selected.nbytes


def on_device(
    batches: Generator[Batch],
    device: torch.device,
    *,
    join: Callable[[Batch], Batch] = lambda batch: batch,
) -> Generator[Batch]:
    """Yield the batches on a device; the next batch is copied while one is used.

    The loader reuses a batch's memory when the next one is requested, so its copy must have ended
    by then. The copy has a stream of its own, so that it overlaps with the network's computation.

    Args:
        batches: the batches of a loader, on the host.
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
    """Start a copy to the device; the indices stay on the host, in memory of their own."""
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
    """Copy tables to the device as (V, N, W), view by view; a repeated table is copied once."""
    first = torch.from_numpy(np.asarray(tables[0][:0]))
    shape = (len(tables), *tables[0].shape)
    stacked = torch.empty(shape, dtype=first.dtype, device=device)
    for slot, table in enumerate(tables):
        stacked[slot].copy_(torch.from_numpy(np.ascontiguousarray(table)))
    return stacked
