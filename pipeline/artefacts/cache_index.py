"""Which cache answers which configuration: a convenience of one workspace, part of no cache.

    <caches>/index.json    request -> {"train": cache id, "eval": cache id}

Later stages find a cache by it without a teacher.
"""

from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache_record import MADE_BY
from pipeline.artefacts.store import publish_json, read_json
from pipeline.provenance import Json, short


def cache_path(caches: Path, cache_id: str) -> Path:
    """Where a cache lies by default: its path contains its id."""
    return caches / short(cache_id)


def remember(caches: Path, *, request: str, train: str, test: str) -> None:
    """Note which caches answer a request."""
    known = _known(caches)
    if known.get(request) != {"train": train, "eval": test}:
        known[request] = {"train": train, "eval": test}
        publish_json(caches / "index.json", known)


def recall(caches: Path, *, request: str, split: Literal["train", "eval"]) -> Path | None:
    """Where the cache that answers ``request`` lies, if it was ever made here."""
    found = _known(caches).get(request)
    if not isinstance(found, dict):
        return None
    path = cache_path(caches, str(found[split]))
    return path if path.is_dir() else None


def _known(caches: Path) -> dict[str, Json]:
    path = caches / "index.json"
    return read_json(path, made_by=MADE_BY) if path.exists() else {}
