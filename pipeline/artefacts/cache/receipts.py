"""Receipts and the seal of a teacher cache: records of what is stored and that it is complete.

A receipt is created after its object is durable; an object without a receipt does not count. The
facts in a receipt depend on the numbers alone, so every worker writes the same facts. Details that
differ from run to run (device, seconds) are in its note, which no hash covers. The seal is created
last. Each of these files has exactly one valid text and carries its own digest, so any changed byte
is noticed. `teacher_cache` documents the layout.
"""

import json
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from pipeline.artefacts.cache.record import MADE_BY, CacheManifest, CacheSummary, Fidelity
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.records import AnyRecord, Record, parse_record, stored_json
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, Damaged, NotSealed
from pipeline.provenance import Json, identity, short

MANIFEST, SEAL = "manifest.json", "sealed.json"
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_RECEIPT_BYTES = 1 << 16
_MAX_SEAL_BYTES = 1 << 29


class Facts(Record):
    """Description of one stored object, the same from every worker."""

    bytes: int = Field(ge=1)
    sha256: str
    rows: tuple[int, int]
    """First row, and the one after the last."""
    min: FiniteFloat
    max: FiniteFloat


class Note(Record):
    """Circumstances in which an object was computed; they differ from run to run."""

    device: str = ""
    seconds: float = 0.0
    fidelity: list[Fidelity] = Field(default_factory=list)
    head_error: float = 0.0


class Receipt(Record):
    """receipts/<array>/<view>.<shard>.json"""

    facts: Facts
    note: Note
    digest: str
    """Hash of the fields above."""

    @classmethod
    def of(cls, facts: Facts, note: Note) -> Self:
        return cls(facts=facts, note=note, digest=_digest("receipt", facts, note))

    @property
    def is_whole(self) -> bool:
        return self.digest == _digest("receipt", self.facts, self.note)


class Seal(Record):
    """sealed.json"""

    root: str
    """Hash of the manifest, the array specifications and the facts of all receipts."""
    metadata: dict[str, str]
    """SHA-256 of manifest.json and of every zarr.json, by key."""
    receipts: dict[str, Facts]
    """By receipt key."""
    summary: CacheSummary
    digest: str
    """Hash of the fields above."""

    @classmethod
    def of(
        cls, metadata: dict[str, str], receipts: dict[str, Facts], summary: CacheSummary
    ) -> Self:
        root = root_hash(metadata, receipts)
        parts = _digest("seal", root, summary)
        return cls(root=root, metadata=metadata, receipts=receipts, summary=summary, digest=parts)

    @property
    def is_whole(self) -> bool:
        root = root_hash(self.metadata, self.receipts)
        return (root, _digest("seal", root, self.summary)) == (self.root, self.digest)


def facts_of(data: bytes, values: NDArray[np.generic], *, rows: tuple[int, int]) -> Facts:
    """Describe an object that stores ``values`` as ``data``."""
    least, most = extremes(values)
    return Facts(bytes=len(data), sha256=sha256(data).hexdigest(), rows=rows, min=least, max=most)


def receipt_key(name: str, view: int, shard: int) -> str:
    """Key of the receipt of an object."""
    return f"receipts/{name}/{view}.{shard}.json"


def root_hash(metadata: dict[str, str], receipts: dict[str, Facts]) -> str:
    """Hash over every byte of a cache except its notes and summary."""
    facts = {key: value.model_dump(mode="json") for key, value in receipts.items()}
    return identity("teacher_cache.root", [metadata, facts])


def create_record(store: ObjectStore, key: str, record: Record) -> bool:
    """Store a record under ``key``; False if the same record was there already."""
    return store.create(key, record_bytes(record))


def create_receipt(store: ObjectStore, key: str, receipt: Receipt) -> None:
    """Store the receipt of an object; another worker may have stored the same facts before.

    Raises:
        ArtefactMismatch: if a receipt with other facts exists.
    """
    try:
        store.create(key, record_bytes(receipt))
    except ArtefactMismatch:
        existing = read_receipt(store, key)
        if existing.facts != receipt.facts:
            raise _not_deterministic(store, key, existing.facts, receipt.facts) from None


def read_receipt(store: ObjectStore, key: str) -> Receipt:
    """Read a receipt and check it against its own digest."""
    receipt = _read(store, key, Receipt, max_bytes=_MAX_RECEIPT_BYTES)
    if not receipt.is_whole:
        raise _damaged(store, key)
    return receipt


def create_seal(store: ObjectStore, seal: Seal) -> Seal:
    """Mark a cache as complete; return its seal, which another worker may have created first.

    Raises:
        ArtefactMismatch: if the cache was sealed with other contents.
    """
    try:
        store.create(SEAL, record_bytes(seal))
    except ArtefactMismatch:
        existing = read_seal(store)
        if existing.root != seal.root:
            raise
        return existing
    return seal


def read_seal(store: ObjectStore) -> Seal:
    """Read sealed.json and check it against its own digest.

    Raises:
        ArtefactNotFound: if the cache is not sealed, or is not a cache.
        ArtefactMismatch: if the seal is damaged.
    """
    try:
        seal = _read(store, SEAL, Seal, max_bytes=_MAX_SEAL_BYTES)
    except ArtefactNotFound:
        if store.size(MANIFEST) is None:
            raise ArtefactNotFound(
                f"{store.url} is not a teacher cache: it has no {MANIFEST}. "
                f"Make one with `{MADE_BY}`, or check the place."
            ) from None
        raise NotSealed(
            f"{store.url} is not sealed: {SEAL} does not exist. "
            f"Run `{MADE_BY}` again to complete it."
        ) from None
    if not seal.is_whole:
        raise _damaged(store, SEAL)
    return seal


def read_manifest(store: ObjectStore, *, expected: str | None = None) -> CacheManifest:
    """Read manifest.json; ``expected`` is its SHA-256 in the seal, None if there is no seal.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged, or its id does not match its contents.
    """
    data = store.read(MANIFEST, max_bytes=_MAX_MANIFEST_BYTES)
    if expected is not None and sha256(data).hexdigest() != expected:
        raise Damaged(
            f"{store.url}/{MANIFEST} differs from the sealed one: sha256 "
            f"{short(sha256(data).hexdigest())} (expected {short(expected)}). {_remedy(store)}"
        )
    manifest = _parse(store, MANIFEST, data, CacheManifest)
    if manifest.identity.id != manifest.id:
        raise Damaged(
            f"{store.url} has an id that does not match its manifest: {short(manifest.id)} "
            f"(expected {short(manifest.identity.id)}). {_remedy(store)}"
        )
    return manifest


def record_bytes(record: Record) -> bytes:
    """The only valid text of a record."""
    return stored_json(record.model_dump(mode="json"))


def _read(store: ObjectStore, key: str, model: type[AnyRecord], *, max_bytes: int) -> AnyRecord:
    return _parse(store, key, store.read(key, max_bytes=max_bytes), model)


def _parse(store: ObjectStore, key: str, data: bytes, model: type[AnyRecord]) -> AnyRecord:
    where = f"{store.url}/{key}"
    try:
        value: Json = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is not a JSON file: {error}. {_remedy(store)}") from error
    try:
        record = parse_record(model, value, path=where, remedy=_remedy(store))
    except ArtefactMismatch as error:
        raise Damaged(str(error)) from error
    if record_bytes(record) != data:
        raise _damaged(store, key)
    return record


def _digest(kind: str, *parts: Record | str) -> str:
    dumped: list[Json] = [
        part if isinstance(part, str) else part.model_dump(mode="json") for part in parts
    ]
    return identity(f"teacher_cache.{kind}", dumped)


def _damaged(store: ObjectStore, key: str) -> Damaged:
    return Damaged(
        f"{store.url}/{key} is damaged: its text was changed after it was written. {_remedy(store)}"
    )


def _not_deterministic(
    store: ObjectStore, key: str, existing: Facts, found: Facts
) -> ArtefactMismatch:
    return ArtefactMismatch(
        f"{store.url}/{key} records other numbers than were computed now: sha256 "
        f"{short(existing.sha256)} (now {short(found.sha256)}). Two workers computed different "
        "numbers: use the same hardware, versions and settings for all. Nothing was overwritten."
    )


def _remedy(store: ObjectStore) -> str:
    return f"Remove {store.url} and run `{MADE_BY}` or `heartcut cache pull` again."


def extremes(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest value; not finite if any value is not."""
    if values.dtype.kind == "f":  # a hundred times faster than numpy in float16
        least, most = torch.aminmax(torch.from_numpy(np.ascontiguousarray(values)))
        return float(least), float(most)
    return float(values.min()), float(values.max())
