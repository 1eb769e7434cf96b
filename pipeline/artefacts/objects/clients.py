"""Connections to object stores from the environment, and what their errors say, in our words.

Nothing of the client library's own messages is repeated: they can hold key names, credentials and
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
"""No byte for this long: given up. It counts anew with each part that arrives."""
RETRY_SECONDS = 12.0
"""No new attempt after this long, so that a dead server is told in RETRY + SILENCE seconds."""
TRANSFER_SECONDS = 900.0
"""For a whole large transfer. An interrupt from the keyboard waits for the request as well."""


class Clients:
    """The two connections of a bucket: one that soon gives up on silence, one for large puts."""

    def __init__(self, scheme: str, host: str, *, single_writer: bool) -> None:
        self.single_writer = single_writer
        refuse_after_fork()
        # While a large body is sent nothing arrives, so silence says nothing there.
        self.quick = _client(scheme, host, {"read_timeout": timedelta(seconds=SILENCE_SECONDS)})
        self.patient = self.quick if scheme.startswith("http") else _client(scheme, host, {})


def refuse_after_fork() -> None:
    """PipelineError in a forked child of a process that used a remote store: it would hang."""
    if _started_by.setdefault("process", os.getpid()) != os.getpid():
        raise PipelineError(
            "Remote objects were used in a forked process, where their connections hang (expected "
            "the process that opened them first). Read them before the fork, or use spawn."
        )


_started_by: dict[str, int] = {}


def _client(scheme: str, host: str, options: dict[str, Any]) -> Any:
    """A client of a bucket, or of a host for HTTP; the rest comes from the environment."""
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
        pass  # its message may repeat what the environment holds
    raise ConfigError(
        f"{scheme}://{host} could not be opened: its settings in the environment are incomplete or "
        f"wrong. Check {_VARIABLES.get(scheme, 'the address')}."
    )


def _http_allowed(scheme: str) -> bool:
    """Whether the user asked for plain http; ConfigError if only half of it is said."""
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
                f"Set {prefix}_ALLOW_HTTP=true if that is meant."
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
    """One line for an error of the library: its class and the server's status, never its words."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    words = str(error)
    status = _STATUS.search(words)
    number = status[1] if status else ""
    if isinstance(error, FileNotFoundError) or number == "404":
        return missing(where)
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or number in ("401", "403"):
        return PipelineError(
            f"{where} was refused: no permission. Check the credentials in the environment, what "
            "they allow, and the name of the bucket."
        )
    if "MissingContentLength" in words:
        return PipelineError(
            f"{where} was refused: its server does not tell the size (expected a Content-Length). "
            "Serve the folder without compression or chunked answers."
        )
    if not number and any(word in words.lower() for word in _UNREACHABLE):
        return PipelineError(
            f"{where} could not be reached: no answer from its server, or it broke off. "
            "Check the address, the network and the server, then run again."
        )
    return PipelineError(
        f"{where} was refused: {f'status {number}' if number else type(error).__name__} (expected "
        "success). Check the address and the settings in the environment, then run again."
    )
