"""Which cache answers which configuration: a convenience of one workspace, part of no cache.

    <folder>/index/<request>.json    {"train": cache id, "eval": cache id}

Later stages find a cache by it without a teacher. A file for each request, so that two jobs at once
do not forget each other's.
"""

from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache.record import MADE_BY
from pipeline.artefacts.publishing import publish_json, read_json
from pipeline.provenance import Json, short


def remember(folder: Path, *, request: str, train: str, test: str) -> None:
    """Note which caches answer a request."""
    found: dict[str, Json] = {"train": train, "eval": test}
    if _known(folder, request) != found:
        publish_json(_path(folder, request), found)


def recall(folder: Path, *, request: str, split: Literal["train", "eval"]) -> str | None:
    """Id of the cache that answers ``request``, if it was ever asked for here."""
    known = _known(folder, request)
    return str(known[split]) if split in known else None


def _known(folder: Path, request: str) -> dict[str, Json]:
    path = _path(folder, request)
    return read_json(path, made_by=MADE_BY) if path.exists() else {}


def _path(folder: Path, request: str) -> Path:
    return folder / "index" / f"{short(request)}.json"
