"""Write-once objects by key: the protocol that every kind of store implements.

A key names a complete object or nothing, and the bytes of an object never change. Any number of
writers may create objects at the same time without a lock: one succeeds, and the others learn that
the object exists.
"""

from collections.abc import Callable
from typing import Protocol

from pipeline.artefacts.publishing import PARTIAL, Data
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError

PROBE_KEY = ".heartcut-probe"
"""Key of the object that `require_conditional_create` leaves in a store; never listed."""


class ObjectStore(Protocol):
    """Objects below one folder. Every method may raise PipelineError with a message of one line."""

    @property
    def url(self) -> str:
        """Path or address of the store for messages, never with a credential."""

    @property
    def can_list(self) -> bool:
        """True if `sizes` and `folders` work; False for plain HTTP."""

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """All bytes of an object.

        Raises:
            ArtefactNotFound: if there is none.
            ArtefactMismatch: if it has more than ``max_bytes``, which is checked before reading;
                if ``key`` is not a plain relative name; or if its path has a symbolic link.
        """

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of every finished object in the folder ``prefix`` and below.

        Keys are relative to this store, not to ``prefix``.
        """

    def folders(self) -> list[str]:
        """Names of the folders directly in this store, sorted."""

    def create(self, key: str, data: Data) -> bool:
        """Store ``data`` durably under ``key``; nothing is ever overwritten.

        Returns:
            True if it was created, False if it existed with the same bytes.
        Raises:
            ArtefactMismatch: if it exists with other bytes.
        """

    def delete(self, key: str) -> None:
        """Remove an object, for garbage collection and quarantine only; no error if missing."""

    def child(self, name: str) -> "ObjectStore":
        """The store of the folder ``name``; it need not exist."""


def check_key(key: str) -> list[str]:
    """The parts of ``key``; ArtefactMismatch unless it is a plain relative name below a store."""
    parts = key.split("/")
    if "\\" in key or not key.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ArtefactMismatch(
            f"Object key is not a plain relative name: {key!r} (expected parts joined by /, none "
            "empty, . or ..). The file that contains this key is damaged or hostile; do not use it."
        )
    return parts


def check_new_key(key: str) -> list[str]:
    """`check_key` for a new object: a name reserved for unfinished files would never be listed."""
    parts = check_key(key)
    if not is_listed(key):
        raise ArtefactMismatch(
            f"Object key is reserved: {key!r} (expected no part that ends in {PARTIAL}, and not "
            f"{PROBE_KEY}). Choose another name."
        )
    return parts


def is_listed(key: str) -> bool:
    """True if a key names a finished object that is not the probe."""
    parts = key.split("/")
    return parts[-1] != PROBE_KEY and not any(part.endswith(PARTIAL) for part in parts)


def missing(where: str) -> ArtefactNotFound:
    """The error for an object that is not there."""
    return ArtefactNotFound(f"{where} does not exist. Check the address, or create it first.")


def too_large(where: str, size: int, max_bytes: int) -> ArtefactMismatch:
    """The error for an object that is larger than its reader allows; it was not read."""
    return ArtefactMismatch(
        f"{where} is too large: {size} bytes (expected at most {max_bytes}). "
        "It was not read: it is damaged, or not a file of heartcut. Check the address."
    )


def create_or_compare(
    store: ObjectStore, key: str, data: Data, put_new: Callable[[], bool]
) -> bool:
    """Create with ``put_new``, or compare with the existing object; see `ObjectStore.create`.

    Args:
        put_new: stores the object and returns True, or returns False if the key is taken.
    """
    where = f"{store.url}/{key}"
    for _ in range(3):
        if put_new():
            return True
        size = store.size(key)
        if size == len(data) and store.read(key, max_bytes=size) == data:
            return False
        if size is not None:
            raise ArtefactMismatch(
                f"{where} exists with other bytes than were computed now (non-determinism); "
                "nothing was overwritten. Use the same inputs and versions in all writers."
            )
    raise PipelineError(
        f"{where} was not created: it existed and then disappeared (expected it to stay). "
        "Another program removes objects; stop it and run the same command again."
    )
