"""Index from a configuration to its caches, local to one workspace and not part of a cache.

    <folder>/index/<request>.json    {"train": cache id, "eval": cache id}

It lets later stages find a cache without a teacher. Each request has a file of its own, so two jobs
at once do not overwrite each other's entries.
"""

from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache.record import MADE_BY
from pipeline.artefacts.publishing import publish_json
from pipeline.artefacts.records import Record, read_record
from pipeline.provenance import short


class _Caches(Record):
    """Ids of the caches that answer a request."""

    train: str
    eval: str


def remember(folder: Path, *, request: str, train: str, test: str) -> None:
    """Store the ids of the caches that answer a request."""
    found = _Caches(train=train, eval=test)
    if _known(folder, request) != found:
        publish_json(_path(folder, request), found.model_dump(mode="json"))


def recall(folder: Path, *, request: str, split: Literal["train", "eval"]) -> str | None:
    """Id of the cache that answers ``request``; None if this workspace has no entry for it."""
    known = _known(folder, request)
    if known is None:
        return None
    return known.train if split == "train" else known.eval


def _known(folder: Path, request: str) -> _Caches | None:
    path = _path(folder, request)
    if not path.exists():
        return None
    remedy = f"Remove it and run `{MADE_BY}` again."
    return read_record(_Caches, path, made_by=MADE_BY, remedy=remedy)


def _path(folder: Path, request: str) -> Path:
    return folder / "index" / f"{short(request)}.json"
