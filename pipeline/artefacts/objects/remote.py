"""Write-once objects in S3, Google Cloud Storage, Azure and, read-only, behind plain HTTP.

Creation is one conditional put: the server lets exactly one of many writers succeed. The client
library is imported on first use and keeps threads, so a forked child must not use a remote store.
Messages of the library can contain key names, credentials and signed addresses: none of them is
shown, and no error raised here has one as its cause.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pipeline.artefacts.objects.clients import Clients, failure_line, require_no_fork
from pipeline.artefacts.objects.protocol import (
    PROBE_KEY,
    ObjectStore,
    check_key,
    check_new_key,
    create_or_compare,
    is_listed,
    too_large,
)
from pipeline.artefacts.publishing import Data
from pipeline.errors import PipelineError

LARGE_BYTES = 1 << 20
MAX_CREATE_BYTES = 5 * 1000**3
"""Limit of a single put: larger ones need S3's multipart upload, which may be unconditional."""

T = TypeVar("T")


class HttpObjects:
    """Objects behind a plain HTTP server: whole objects by GET, no ranges, no listing."""

    can_list = False

    def __init__(self, clients: Clients, address: str, prefix: str) -> None:
        self._clients = clients
        self._address = address
        self._prefix = prefix

    @property
    def url(self) -> str:
        """The address; `open_objects` checked that it holds no credential."""
        return "/".join(part for part in (self._address, self._prefix) if part)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def child(self, name: str) -> "HttpObjects":
        """The store of a folder below this one; it shares the connections."""
        below = "/".join(check_key(name))
        return type(self)(self._clients, self._address, _joined(self._prefix, below))

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """All bytes of an object; see `ObjectStore`."""
        path = self._path(key)

        def transfer() -> bytes | int:
            answer = self._clients.quick.get(path)
            size = int(answer.meta["size"])
            return size if size > max_bytes else bytes(answer.bytes())

        found = self._with_our_errors(key, transfer)
        if isinstance(found, int):
            raise too_large(self._where(key), found, max_bytes)
        return found

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""
        path = self._path(key)

        def look() -> int | None:
            try:
                return int(self._clients.quick.head(path)["size"])
            except FileNotFoundError:
                return None

        return self._with_our_errors(key, look)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Raise PipelineError: plain HTTP has no listing."""
        raise self._not_offered(prefix, "be listed")

    def folders(self) -> list[str]:
        """Raise PipelineError: plain HTTP has no listing."""
        raise self._not_offered("", "be listed")

    def create(self, key: str, data: Data) -> bool:  # noqa: ARG002
        """Raise PipelineError: plain HTTP is read-only."""
        raise self._not_offered(key, "be written")

    def delete(self, key: str) -> None:
        """Raise PipelineError: plain HTTP is read-only."""
        raise self._not_offered(key, "be written")

    def _not_offered(self, key: str, what: str) -> PipelineError:
        return PipelineError(
            f"{self._where(key)} cannot {what}: it is plain HTTP (expected a folder, s3://, gs:// "
            "or az://). Use the address that the objects were written to."
        )

    def _where(self, key: str) -> str:
        return _joined(self.url, key)

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, *check_key(key)) if part)

    def _with_our_errors(self, key: str, request: Callable[[], T]) -> T:
        """Result of ``request``; its errors become a message of ours, without context or cause."""
        from obstore.exceptions import BaseError

        require_no_fork()
        try:
            return request()
        except (BaseError, OSError, ValueError) as error:
            failure = failure_line(self._where(key), error)
        raise failure  # outside of `except`, so the library's error is not attached as context


class RemoteObjects(HttpObjects):
    """Objects below a prefix of a bucket."""

    can_list = True

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of every object below ``prefix``, from a listing."""
        below = self._path(prefix) if prefix else self._prefix

        def listing() -> list[Any]:
            return list(self._clients.quick.list(below or None).collect())

        found = self._with_our_errors(prefix, listing)
        start = len(self._prefix) + 1 if self._prefix else 0
        keys = {str(entry["path"])[start:]: int(entry["size"]) for entry in found}
        return {key: keys[key] for key in sorted(keys) if is_listed(key)}

    def folders(self) -> list[str]:
        """Names of the common prefixes directly below; an empty folder is not listed."""

        def listing() -> list[str]:
            answer = self._clients.quick.list_with_delimiter(self._prefix or None)
            return [str(name) for name in answer["common_prefixes"]]

        names = {name.rstrip("/").rpartition("/")[2] for name in self._with_our_errors("", listing)}
        return sorted(name for name in names if is_listed(name))

    def create(self, key: str, data: Data) -> bool:
        """Store ``data`` by a conditional put; see `ObjectStore`.

        A put that is retried because its answer was lost finds its own object, with equal bytes.
        """
        check_new_key(key)
        if len(data) > MAX_CREATE_BYTES:
            raise too_large(self._where(key), len(data), MAX_CREATE_BYTES)
        return create_or_compare(self, key, data, lambda: self.put_new(key, data))

    def put_new(self, key: str, data: Data) -> bool:
        """Store ``data`` if the key is free; False if the key exists, with any bytes."""
        if self._clients.single_writer and self.size(key) is not None:
            return False
        from obstore.exceptions import AlreadyExistsError

        path = self._path(key)
        mode: Literal["create", "overwrite"]
        mode = "overwrite" if self._clients.single_writer else "create"
        client = self._clients.patient if len(data) > LARGE_BYTES else self._clients.quick

        def put() -> bool:
            try:
                client.put(path, data, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        return self._with_our_errors(key, put)

    def delete(self, key: str) -> None:
        """Remove an object; no error if it is missing."""
        path = self._path(key)

        def remove() -> None:
            try:
                self._clients.quick.delete(path)
            except FileNotFoundError:
                return

        self._with_our_errors(key, remove)

    def require_conditional(self) -> None:
        """Raise PipelineError if the server ignores the condition of a conditional put."""
        if self._clients.single_writer:
            return
        self.put_new(PROBE_KEY, b"first")
        if self.put_new(PROBE_KEY, b"second"):
            raise PipelineError(
                f"{self.url} ignores conditional creation, so two writers could overwrite each "
                "other (expected the second creation of a key to fail). Use another server, or "
                "`heartcut cache push --single-writer` if only one process writes there."
            )


def require_conditional_create(store: ObjectStore) -> None:
    """Check that two writers of ``store`` cannot overwrite each other.

    A remote store is probed with the fixed key `PROBE_KEY`, which stays there and is not listed.
    A folder needs no probe: without hard links its first creation fails. A store opened for a
    single writer is accepted.

    Raises:
        PipelineError: if the server ignores the condition, or the store is read-only.
    """
    if isinstance(store, RemoteObjects):
        store.require_conditional()
    elif isinstance(store, HttpObjects):
        store.create(PROBE_KEY, b"")


def open_remote(scheme: str, host: str, prefix: str, *, single_writer: bool) -> ObjectStore:
    """The store of an address that `open_objects` has checked; nothing is contacted yet."""
    kind = HttpObjects if scheme.startswith("http") else RemoteObjects
    return kind(Clients(scheme, host, single_writer=single_writer), f"{scheme}://{host}", prefix)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
