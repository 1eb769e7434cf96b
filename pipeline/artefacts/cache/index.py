"""Index from a configuration to its caches, local to one workspace and not part of a cache.

    <folder>/index/<request>.json    {"train": cache id, "eval": cache id}

It lets later stages find a cache without a teacher. Each request has a file of its own, so two jobs
at once do not overwrite each other's entries.
"""

from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache.record import MADE_BY
from pipeline.artefacts.publishing import publish_json, read_json
from pipeline.provenance import Json, short


def remember(folder: Path, *, request: str, train: str, test: str) -> None:
    """Store the ids of the caches that answer a request."""
    found: dict[str, Json] = {"train": train, "eval": test}
    if _known(folder, request) != found:
        publish_json(_path(folder, request), found)


def recall(folder: Path, *, request: str, split: Literal["train", "eval"]) -> str | None:
    """Id of the cache that answers ``request``; None if this workspace has no entry for it."""
    known = _known(folder, request)
    return str(known[split]) if split in known else None


def _known(folder: Path, request: str) -> dict[str, Json]:
    path = _path(folder, request)
    return read_json(path, made_by=MADE_BY) if path.exists() else {}


def _path(folder: Path, request: str) -> Path:
    return folder / "index" / f"{short(request)}.json"
