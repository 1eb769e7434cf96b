"""Addresses of object stores: a folder, a bucket or a web server, opened by its scheme."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.objects.protocol import ObjectStore, check_key
from pipeline.errors import ConfigError

REMOTE_SCHEMES = ("s3", "gs", "az", "https", "http")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file|s3|gs|az|https?):", re.IGNORECASE)


def open_objects(location: str | Path, *, single_writer: bool = False) -> ObjectStore:
    """The object store at a folder, ``file://``, ``s3://``, ``gs://``, ``az://`` or ``http(s)://``.

    Nothing is contacted or created yet. Credentials come from the environment only.

    Args:
        location: a path, or an address without credentials, query and fragment.
        single_writer: create remote objects by looking first and then writing, for servers
            without conditional creation. Safe for ONE writer only: two could overwrite each other.
    Raises:
        ConfigError: if the address cannot be used. The message never repeats a credential from it.
    """
    found = None if isinstance(location, Path) else _SCHEME.match(location)
    if found is None:
        return LocalObjects(Path(location))
    scheme = (found[1] or found[2]).lower()
    host, folder = _address(str(location), scheme)
    if scheme == "file":
        if host not in ("", "localhost") or not folder.startswith("/"):
            raise ConfigError("file:// address names another machine. Write file:///folder.")
        return LocalObjects(Path(unquote(folder)))
    from pipeline.artefacts.objects.remote import open_remote  # local stores do not need it

    folder = unquote(folder) if scheme.startswith("http") else folder
    prefix = folder.strip("/")
    if prefix:
        check_key(prefix)
    return open_remote(scheme, host, prefix, single_writer=single_writer)


def _address(location: str, scheme: str) -> tuple[str, str]:
    """Host (or bucket) and path of an address; an address that may hold a credential is an error.

    Messages repeat only the scheme: a secret that contains a slash can look like a host or a path.
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
    """Fault of the host or bucket, for a message; "" if there is none."""
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
