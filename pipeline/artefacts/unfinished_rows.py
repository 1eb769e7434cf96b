"""The teacher's features of a shard that is not finished: what a stopped worker leaves.

    <cache>.unfinished/
        <view>.<first>-<stop>.rows    features of the samples from `first` to `stop` - 1

The files of a shard continue each other. Each is replaced as a whole, holds a digest of all of it,
and names what its bits depend on (see `unfinished_run.write_state`). They are local: they save time
and are a part of no artefact, so a file that is damaged, or was written with other settings, is
ignored. They are removed when their shard is stored.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from pipeline.artefacts.unfinished_run import read_state, write_state
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json

logger = logging.getLogger(__name__)

UNFINISHED: Final = ".unfinished"
_SUFFIX: Final = ".rows"
_NAME: Final = re.compile(rf"(\d+)\.(\d+)-(\d+)\{_SUFFIX}")


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """Rows of one shard in one view, by their sample indices."""

    view: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """The first rows of a shard that were computed."""

    features: Tensor
    """(n, D) float32."""
    seconds: float
    """Time that they took."""


@dataclass(frozen=True, kw_only=True)
class UnfinishedRows:
    """The folder with the unfinished shards of one cache."""

    folder: Path
    made_by: Mapping[str, Json]
    """Everything that the bits of a row depend on: cache, batch size, device, versions."""

    def read(self, shard: ShardRows) -> list[KeptRows]:
        """Read the kept rows of a shard, from its start and without gaps."""
        found: list[KeptRows] = []
        first = shard.start
        while (kept := self._longest(shard, first)) is not None:
            found.append(kept)
            first += len(kept.features)
        return found

    @property
    def num_rows(self) -> int:
        """Rows of all shards that are in files."""
        return sum(stop - first for _, first, stop in map(_numbers, self._files()))

    def keep(self, shard: ShardRows, first: int, rows: KeptRows) -> None:
        """Store rows of a shard from the sample ``first`` on.

        Raises:
            PipelineError: if they cannot be written.
        """
        state = {
            "made_by": self._description(shard, first),
            "features": rows.features,
            "seconds": rows.seconds,
        }
        name = f"{shard.view}.{first}-{first + len(rows.features)}{_SUFFIX}"
        write_state(self.folder / name, state)

    def forget(self, shard: ShardRows) -> None:
        """Remove the rows of a shard, which is stored."""
        for path in self._files():
            view, first, _ = _numbers(path)
            if view == shard.view and shard.start <= first < shard.stop:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder: the cache is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.name)]

    def _longest(self, shard: ShardRows, first: int) -> KeptRows | None:
        """The most rows from ``first`` on; two workers of a shard write files of other lengths."""
        paths = {_numbers(path): path for path in self._files()}
        for view, start, stop in sorted(paths, reverse=True):
            if (view, start) == (shard.view, first) and first < stop <= shard.stop:
                kept = self._read(paths[view, start, stop], shard, first)
                if kept is not None:
                    return kept
        return None

    def _description(self, shard: ShardRows, first: int) -> dict[str, Json]:
        return {
            **self.made_by,
            "view": shard.view,
            "shard": [shard.start, shard.stop],
            "first": first,
        }

    def _read(self, path: Path, shard: ShardRows, first: int) -> KeptRows | None:
        """The rows of one file; None, with a word to the user, if they cannot be used."""
        try:
            state = read_state(path)
            found, features, seconds = state["made_by"], state["features"], state["seconds"]
        except (ArtefactMismatch, OSError, LookupError, TypeError):
            logger.warning("%s is damaged, so its images are recomputed", path)
            return None
        wanted = self._description(shard, first)
        if found != wanted:
            names = [
                key
                for key in wanted
                if not isinstance(found, dict) or found.get(key) != wanted[key]
            ]
            logger.warning(
                "%s was written with another %s, so its images are recomputed",
                path,
                ", ".join(names) or "format",
            )
            return None
        return KeptRows(features=features, seconds=float(seconds))


def _numbers(path: Path) -> tuple[int, int, int]:
    """View, first row and the one after the last, from the name of a file."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    view, first, stop = map(int, found.groups())
    return view, first, stop
