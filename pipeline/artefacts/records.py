"""Stored records: JSON objects of a known form; another form raises a message of one line.

`publishing.publish_json` gives every file a digest of its contents, and reading checks it. So a
flipped bit that leaves a valid record, such as another digit, is found too.
"""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artefacts.publishing import read_json
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json


class Record(BaseModel):
    """Base of stored records: frozen, without unknown fields, and with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def printable(text: str) -> str:
    """``text`` from a file for use in a message: one line, printable, at most 400 characters."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 400 else shown[:397] + "..."


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(model: type[AnyRecord], path: Path, *, made_by: str, remedy: str) -> AnyRecord:
    """Read the JSON file at ``path`` as ``model``.

    Raises:
        ArtefactNotFound: if there is none; the message names ``made_by``.
        ArtefactMismatch: if it is damaged or has another form; the message ends in ``remedy``.
    """
    value = read_json(path, made_by=made_by, remedy=remedy)
    return parse_record(model, value, path=path, remedy=remedy)


def parse_record(
    model: type[AnyRecord], value: Json, *, path: Path | str, remedy: str
) -> AnyRecord:
    """Validate ``value`` as ``model``; ``path`` is its file, for the message."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(printable(str(part)) for part in first["loc"])
        raise ArtefactMismatch(
            f"{path} does not follow its format: {where}: {first['msg']}. {remedy}"
        ) from error


def stored_json(value: Json) -> bytes:
    """The only valid text of a JSON file whose bytes are all checked, such as a cache's files."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
