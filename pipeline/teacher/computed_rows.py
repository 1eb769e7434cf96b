"""The rows of a shard that the teacher has computed, written to files now and then."""

import logging
from time import monotonic
from typing import Final

import torch
from torch import Tensor

from pipeline.artefacts.unfinished_rows import KeptRows, ShardRows, UnfinishedRows
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

KEEP_SECONDS: Final = 30.0
"""Time between two writes of the rows of an unfinished shard."""


class ComputedRows:
    """The computed rows of a shard, and the part of them that is in files."""

    def __init__(
        self, rows: ShardRows, place: UnfinishedRows | None, found: list[KeptRows]
    ) -> None:
        self._rows, self._place = rows, place
        self._parts = [kept.features for kept in found]
        self._before = sum(kept.seconds for kept in found)
        self.num_rows = self.num_kept = sum(map(len, self._parts))
        self._new: list[Tensor] = []
        self._started = self._kept_at = monotonic()

    def add(self, features: Tensor) -> None:
        """Add a batch, and write the rows that are in no file if it is time to."""
        self._new.append(features)
        self.num_rows += len(features)
        if monotonic() - self._kept_at >= KEEP_SECONDS and self.num_rows < len(self._rows):
            self.keep()

    def keep(self) -> None:
        """Write the rows that are in no file yet."""
        now = monotonic()
        if self._place is None or not self._new:
            return
        new = torch.cat(self._new)
        try:
            rows = KeptRows(features=new, seconds=now - self._kept_at)
            self._place.keep(self._rows, self._rows.start + self.num_kept, rows)
        except (PipelineError, OSError) as error:
            logger.warning("%s So a stop loses the images of the shard at work.", error)
            self._place = None
            return
        self._parts.append(new)
        self._new = []
        self.num_kept += len(new)
        self._kept_at = now

    def all_rows(self) -> KeptRows:
        """All rows, with the time that they took in all processes."""
        return KeptRows(
            features=torch.cat([*self._parts, *self._new]),
            seconds=self._before + monotonic() - self._started,
        )
