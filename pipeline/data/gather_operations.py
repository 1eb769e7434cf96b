"""FFCV operations that join soft labels and flags to a batch by sample index.

Every operation is plain Python around one fast call, so changing the view or the table never
recompiles anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.ffcv_compat import AllocationQuery, Operation, State

LabelTable: TypeAlias = NDArray[np.float16] | NDArray[np.uint16]
"""Soft labels of one view: (N, C) float16, or packed rows, (N, W) uint16."""


class Gather(Operation):  # type: ignore[misc]
    """Gather rows of 16-bit tables by (slot, sample index), with numpy: numba lacks float16."""

    def __init__(self, tables: Sequence[LabelTable]) -> None:
        super().__init__()
        self._tables = tables
        num_samples, self._width = tables[0].shape
        self.slots = np.zeros(num_samples, dtype=np.int64)

    def generate_code(self) -> Callable[..., LabelTable]:
        def gather(_: Any, destination: Any, indices: Any) -> Any:
            destination = destination[: len(indices)]
            indices = indices.astype(np.int64)
            slots = self.slots[indices]
            if (slots == slots[0]).all():  # seeded views: one table serves the whole batch
                return np.take(
                    self._tables[slots[0]], indices, axis=0, out=destination, mode="clip"
                )
            for slot in np.unique(slots):
                here = slots == slot
                destination[here] = self._tables[slot][indices[here]]
            return destination

        gather.with_indices = True  # type: ignore[attr-defined]
        return gather

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        dtype = self._tables[0].dtype
        shape = (self._width,)
        memory = AllocationQuery(shape, dtype)
        return replace(previous_state, jit_mode=False, shape=shape, dtype=dtype), memory


class Flags(Operation):  # type: ignore[misc]
    """Look up one flag per sample index."""

    def __init__(self, flags: NDArray[np.bool_]) -> None:
        super().__init__()
        self._flags = flags

    def generate_code(self) -> Callable[..., NDArray[np.bool_]]:
        def flag(_: Any, __: Any, indices: Any) -> Any:
            return self._flags[indices]

        flag.with_indices = True  # type: ignore[attr-defined]
        return flag

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=False, dtype=np.dtype(np.bool_)), None
