"""An epoch of FFCV that can fail and be left.

FFCV 1.0.2 hangs when an operation raises, and leaks a thread when a loop is left early. Here a
raised error is raised, and closing an epoch ends its thread.
"""

import threading
from collections.abc import Sequence
from queue import Empty, Full

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.ffcv_compat import EpochIterator, Loader


class EndingEpoch(EpochIterator):  # type: ignore[misc]
    """FFCV's thread over the samples of ``order``: it raises what an operation raised, and ends."""

    def __init__(self, loader: Loader, order: NDArray[np.int64]) -> None:
        self.failure: BaseException | None = None
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.failure = error
            self._end_of_batches()

    def __next__(self) -> Sequence[Tensor]:
        try:
            batch: Sequence[Tensor] = super().__next__()
        except StopIteration:
            if self.failure is not None:
                raise self.failure from None
            raise
        return batch

    def close(self) -> None:
        """End the thread wherever it is, and give its buffers back."""
        super().close()
        while self.is_alive() and threading.current_thread() is not self:
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                continue
        self.closed = True

    def _end_of_batches(self) -> None:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(None, timeout=0.1)
            except Full:
                continue
            return
