"""Write-once objects by key, in a folder or in an object store: the protocol and the addresses.

A key names a whole object or nothing, never a part of one, and its bytes never change. Any number
of writers may create at the same time without a lock: one wins, and the others are told.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pipeline.artefacts.store import PARTIAL
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError, PipelineError

REMOTE_SCHEMES = ("s3", "gs", "az", "https", "http")
PROBE_KEY = ".heartcut-probe"
"""What `require_conditional_create` leaves behind; never listed."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file|s3|gs|az|https?):", re.IGNORECASE)


class ObjectStore(Protocol):
    """Objects below one folder. Every method may raise PipelineError, in one line."""

    @property
    def url(self) -> str:
        """Where it is, for people: a plain path or an address, never with a credential."""

    @property
    def can_list(self) -> bool:
        """Whether `sizes` and `folders` work; plain HTTP cannot."""

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """All bytes of an object.

        Raises:
            ArtefactNotFound: if there is none.
            ArtefactMismatch: if it has more than ``max_bytes``, told before anything is read; if
                ``key`` is not a plain relative name; or if it is reached over a symbolic link.
        """

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of every object in the folder ``prefix`` and below, without unfinished ones.

        Keys are relative to this store, not to ``prefix``.
        """

    def folders(self) -> list[str]:
        """Names of the folders directly in this store, sorted."""

    def create(self, key: str, data: bytes) -> bool:
        """Store ``data`` durably under ``key``; nothing is ever overwritten.

        Returns:
            True if it was created, False if it existed with the same bytes.
        Raises:
            ArtefactMismatch: if it exists with other bytes.
        """

    def delete(self, key: str) -> None:
        """Remove an object, for garbage collection and quarantine only; fine if it is missing."""

    def child(self, name: str) -> "ObjectStore":
        """The store of the folder ``name``; it need not exist."""


def open_objects(location: str | Path, *, single_writer: bool = False) -> ObjectStore:
    """The object store at a folder, ``file://``, ``s3://``, ``gs://``, ``az://`` or ``http(s)://``.

    Nothing is contacted or made yet. Credentials come from the environment only.

    Args:
        single_writer: create remote objects by looking first and then writing, for servers
            without conditional creation. Safe for ONE writer only: two could overwrite each other.
    Raises:
        ConfigError: if the address cannot be used. The message never repeats a credential in it.
    """
    found = None if isinstance(location, Path) else _SCHEME.match(location)
    if found is None:
        return _local(Path(location))
    scheme = (found[1] or found[2]).lower()
    host, folder = _address(str(location), scheme)
    if scheme == "file":
        if host not in ("", "localhost") or not folder.startswith("/"):
            raise ConfigError("file:// address is not of this machine. Write file:///folder.")
        return _local(Path(unquote(folder)))
    from pipeline.artefacts.remote_objects import open_remote  # local work never loads it

    folder = unquote(folder) if scheme.startswith("http") else folder
    prefix = folder.strip("/")
    if prefix:
        check_key(prefix)
    return open_remote(scheme, host, prefix, single_writer=single_writer)


def _local(folder: Path) -> ObjectStore:
    from pipeline.artefacts.local_objects import LocalObjects  # it imports this module

    return LocalObjects(folder)


def _address(location: str, scheme: str) -> tuple[str, str]:
    """Host (or bucket) and path of an address that can hold no credential.

    The messages repeat the scheme alone: a secret with a slash in it may pass for a host or a path.
    """
    if scheme not in ("file", *REMOTE_SCHEMES):
        known = ", ".join(f"{name}://" for name in ("file", *REMOTE_SCHEMES))
        raise ConfigError(f"{scheme}:// address has an unknown scheme (expected {known}).")
    rest = location.partition("://")[2]
    wrong = (
        "no // after the scheme"
        if "://" not in location
        else "a user or a password (an @)"
        if "@" in rest
        else "a query (a ?)"
        if "?" in rest
        else "a fragment (a #)"
        if "#" in rest
        else "a backslash or a control character"
        if "\\" in rest or not rest.isprintable()
        else _wrong_host(location, scheme)
    )
    if wrong:
        raise ConfigError(
            f"{scheme}:// address has {wrong} (expected {scheme}://{_EXPECTED.get(scheme, 'host')}"
            "/folder). Credentials come from the environment only."
        )
    parts = urlsplit(location)
    return parts.netloc, parts.path


_EXPECTED = {"s3": "bucket", "gs": "bucket", "az": "container", "file": ""}


def _wrong_host(location: str, scheme: str) -> str:
    """What is wrong with the host or bucket, or nothing."""
    try:
        parts = urlsplit(location)
        port = parts.port
    except ValueError:
        return "a host or port that cannot be read"
    if scheme != "file" and not parts.hostname:
        return "no host or bucket"
    if scheme in ("s3", "gs", "az") and (port is not None or ":" in parts.netloc):
        return "a port"
    return ""


def check_key(key: str) -> list[str]:
    """The parts of ``key``; ArtefactMismatch unless it is a plain relative name below a store."""
    parts = key.split("/")
    if "\\" in key or not key.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ArtefactMismatch(
            f"Object key is not a plain relative name: {key!r} (expected parts joined by /, none "
            "empty, . or ..). What names it is damaged or hostile; do not use it."
        )
    return parts


def check_new_key(key: str) -> list[str]:
    """`check_key` for what is to be created: a name of unfinished files would never be listed."""
    parts = check_key(key)
    if not is_listed(key):
        raise ArtefactMismatch(
            f"Object key is reserved: {key!r} (expected no part that ends in {PARTIAL}, and not "
            f"{PROBE_KEY}). Choose another name."
        )
    return parts


def is_listed(key: str) -> bool:
    """Whether a key is an object of the user: not unfinished, and not the probe."""
    parts = key.split("/")
    return parts[-1] != PROBE_KEY and not any(part.endswith(PARTIAL) for part in parts)


def missing(where: str) -> ArtefactNotFound:
    """The error for an object that is not there."""
    return ArtefactNotFound(f"{where} does not exist. Check the address, or make it first.")


def too_large(where: str, size: int, max_bytes: int) -> ArtefactMismatch:
    """The error for an object that is larger than its reader allows; it was not read."""
    return ArtefactMismatch(
        f"{where} is too large: {size} bytes (expected at most {max_bytes}). "
        "It was not read; it is damaged or was not made by this pipeline."
    )


def create_or_compare(
    store: ObjectStore, key: str, data: bytes, put_new: Callable[[], bool]
) -> bool:
    """Create with ``put_new``, or compare with what was there first; see `ObjectStore.create`.

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
                f"{where} exists with other bytes: non-determinism: nothing was overwritten "
                "(expected the bytes to create). Use the same inputs and versions in all writers."
            )
    raise PipelineError(
        f"{where} was not created: it was there and gone again (expected it to stay). "
        "Somebody removes objects; stop that and try again."
    )
