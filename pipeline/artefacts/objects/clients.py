"""Connections to object stores, set up from the environment, and messages for their errors.

Messages of the client library are never repeated: they can contain key names, credentials and
signed addresses.
"""

import os
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from pipeline.artefacts.objects.protocol import missing
from pipeline.errors import ConfigError, PipelineError

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""Time without a received byte after which a request fails; each part restarts the count."""
RETRY_SECONDS = 12.0
"""Time after which nothing is retried, so a dead server is reported in RETRY + SILENCE seconds."""
TRANSFER_SECONDS = 900.0
"""Limit on a large transfer. A keyboard interrupt also waits for the current request."""


class Clients:
    """The two connections of a bucket: one with a short timeout, one for large puts."""

    def __init__(self, scheme: str, host: str, *, single_writer: bool) -> None:
        self.single_writer = single_writer
        require_no_fork()
        # Nothing arrives while a large body is sent, so a short timeout would fail wrongly there.
        self.quick = _client(scheme, host, {"read_timeout": timedelta(seconds=SILENCE_SECONDS)})
        self.patient = self.quick if scheme.startswith("http") else _client(scheme, host, {})


def require_no_fork() -> None:
    """Raise PipelineError in a forked child of a user of a remote store, where it would hang."""
    if _started_by.setdefault("process", os.getpid()) != os.getpid():
        raise PipelineError(
            "Remote objects were used in a forked process, where their connections hang (expected "
            "the process that opened them). Read them before the fork, or use spawn."
        )


_started_by: dict[str, int] = {}


def _client(scheme: str, host: str, options: dict[str, Any]) -> Any:
    """A client of a bucket, or of an HTTP host; credentials come from the environment."""
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    options |= {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=TRANSFER_SECONDS),
        "allow_http": _http_allowed(scheme),
    }
    retries: Any = {
        "max_retries": 6,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    name = host if scheme in kinds else f"{scheme}://{host}"
    try:
        return kinds.get(scheme, HTTPStore)(name, client_options=options, retry_config=retries)
    except (BaseError, OSError, ValueError):
        pass  # its message may repeat credentials from the environment
    raise ConfigError(
        f"{scheme}://{host} could not be opened: its settings in the environment are incomplete or "
        f"wrong. Check {_VARIABLES.get(scheme, 'the address')}."
    )


def _http_allowed(scheme: str) -> bool:
    """True if the user allowed plain http; ConfigError if an endpoint is http without that."""
    if scheme.startswith("http"):
        return scheme == "http"
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[scheme]
    # The client options given above replace what the library would read from the environment.
    if os.environ.get(f"{prefix}_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on"):
        return True
    for name in _ENDPOINTS[scheme]:
        if urlsplit(os.environ.get(name, "")).scheme == "http":
            raise ConfigError(
                f"{name} is plain http (expected https). "
                f"Use https, or set {prefix}_ALLOW_HTTP=true to allow plain http."
            )
    return False


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_STATUS = re.compile(r"status code: (\d{3})")
_UNREACHABLE = ("error sending request", "timed out", "connect", "dns", "body error", "decoding")


def failure_line(where: str, error: Exception) -> PipelineError:
    """Message for an error of the library: its class and the server's status, never its text."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    words = str(error)
    status = _STATUS.search(words)
    number = status[1] if status else ""
    if isinstance(error, FileNotFoundError) or number == "404":
        return missing(where)
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or number in ("401", "403"):
        return PipelineError(
            f"{where} cannot be accessed: permission denied. Check the credentials in the "
            "environment, their permissions, and the name of the bucket."
        )
    if "MissingContentLength" in words:
        return PipelineError(
            f"{where} cannot be read: its server does not send the size (expected Content-Length). "
            "Serve the folder without compression or chunked answers."
        )
    if not number and any(word in words.lower() for word in _UNREACHABLE):
        return PipelineError(
            f"{where} could not be reached: its server did not answer, or broke off. "
            "Check the address, the network and the server, then run again."
        )
    return PipelineError(
        f"{where} failed: {f'status {number}' if number else type(error).__name__} (expected "
        "success). Check the address and the settings in the environment, then run again."
    )
