"""Receipts and the seal of a teacher cache: what is stored, and that it is all there.

Zarr reads a missing object as the fill value without complaint, so the receipts say what exists.
The layout is told in `teacher_cache`.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache_record import MADE_BY, CacheManifest, CacheSummary
from pipeline.artefacts.records import AnyRecord, Record, read_record
from pipeline.artefacts.store import publish_json, read_json
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import Json, canonical_json, file_sha256, identity, short


class Receipt(Record):
    """One stored object, told after it was written."""

    key: str
    """Its path inside the cache."""
    bytes: int
    sha256: str
    rows: tuple[int, int]
    """First row, and the one after the last."""
    min: float
    max: float


class Seal(Record):
    """sealed.json"""

    root: str
    """Hash of the manifest, the array specifications and the receipts."""
    receipts: dict[str, str]
    """Digest of each."""
    summary: CacheSummary
    digest: str
    """Hash of the fields above."""


def write_receipt(
    folder: Path,
    name: str,
    *,
    index: str,
    key: str,
    rows: tuple[int, int],
    values: NDArray[np.generic],
) -> None:
    """Vouch for the object of array ``name`` that was just written to ``key``."""
    stored = folder / key
    receipt = Receipt(
        key=key,
        bytes=stored.stat().st_size,
        sha256=file_sha256(stored),
        rows=rows,
        min=float(values.min()),
        max=float(values.max()),
    )
    publish_json(folder / "receipts" / name / f"{index}.json", receipt.model_dump(mode="json"))


def write_seal(folder: Path, summary: CacheSummary) -> None:
    """Declare the cache complete."""
    root, receipts = check_objects(folder)
    digest = _seal_digest(root, receipts, summary)
    seal = Seal(root=root, receipts=receipts, summary=summary, digest=digest)
    publish_json(folder / "sealed.json", seal.model_dump(mode="json"))


def read_seal(folder: Path) -> Seal:
    """sealed.json, checked against itself and against everything that it seals.

    Raises:
        ArtefactNotFound: if there is no sealed cache, or an object is missing.
        ArtefactMismatch: if an object is of another size or anything is not what was sealed.
    """
    seal = read_cache_record(Seal, folder, "sealed.json")
    root, _ = check_objects(folder)
    if root != seal.root or seal.digest != _seal_digest(root, seal.receipts, seal.summary):
        raise ArtefactMismatch(
            f"{folder} is not what was sealed: root hash {short(root)} "
            f"(expected {short(seal.root)}). Remove it and run `{MADE_BY}` again."
        )
    return seal


def check_objects(folder: Path) -> tuple[str, dict[str, str]]:
    """Compare every stored object's size with its receipt.

    Returns:
        The root hash, and the digest of every receipt by its name.
    """
    digests = {}
    for path in sorted(folder.glob("receipts/*/*.json")):
        name = str(path.relative_to(folder))
        receipt = read_cache_record(Receipt, folder, name)
        _check_size(folder, receipt)
        text = canonical_json(receipt.model_dump(mode="json"))
        digests[name] = sha256(text).hexdigest()
    manifest = read_cache_record(CacheManifest, folder, "manifest.json").model_dump(mode="json")
    metadata: list[Json] = [
        [str(path.relative_to(folder)), read_json(path, made_by=MADE_BY)]
        for path in sorted((folder / "data.zarr").rglob("zarr.json"))
    ]
    return identity("teacher_cache.root", [manifest, metadata, digests]), digests


def read_cache_record(model: type[AnyRecord], folder: Path, name: str) -> AnyRecord:
    """The JSON file ``name`` of a cache."""
    remedy = f"Remove {folder} and run `{MADE_BY}` again."
    return read_record(model, folder / name, made_by=MADE_BY, remedy=remedy)


def _check_size(folder: Path, receipt: Receipt) -> None:
    stored = folder / receipt.key
    remedy = f"Remove {folder} and run `{MADE_BY}` again."
    try:
        found = stored.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a damaged receipt may hold any name
        raise ArtefactNotFound(
            f"{stored} is missing (expected {receipt.bytes:,} bytes). {remedy}"
        ) from error
    if found != receipt.bytes:
        raise ArtefactMismatch(
            f"{stored} has {found:,} bytes (expected {receipt.bytes:,}). {remedy}"
        )


def _seal_digest(root: str, receipts: dict[str, str], summary: CacheSummary) -> str:
    return identity("teacher_cache.seal", [root, receipts, summary.model_dump(mode="json")])
