"""Which cache answers which configuration: a convenience of one workspace, part of no cache.

    <folder>/index.json    request -> {"train": cache id, "eval": cache id}

Later stages find a cache by it without a teacher.
"""

from pathlib import Path
from typing import Literal

from pipeline.artefacts.cache_record import MADE_BY
from pipeline.artefacts.store import publish_json, read_json
from pipeline.provenance import Json


def remember(folder: Path, *, request: str, train: str, test: str) -> None:
    """Note which caches answer a request."""
    known = _known(folder)
    if known.get(request) != {"train": train, "eval": test}:
        known[request] = {"train": train, "eval": test}
        publish_json(folder / "index.json", known)


def recall(folder: Path, *, request: str, split: Literal["train", "eval"]) -> str | None:
    """Id of the cache that answers ``request``, if it was ever asked for here."""
    found = _known(folder).get(request)
    return str(found[split]) if isinstance(found, dict) and split in found else None


def _known(folder: Path) -> dict[str, Json]:
    path = folder / "index.json"
    return read_json(path, made_by=MADE_BY) if path.exists() else {}
