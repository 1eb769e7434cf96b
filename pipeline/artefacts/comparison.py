"""compared.json: which runs a comparison was of, under the names that people gave them.

<workspace>/compared.json    written when `compare` is done; the next comparison replaces it
"""

from pathlib import Path
from typing import Final, Literal

from pipeline.artefacts.publishing import publish_json
from pipeline.artefacts.records import Record, read_record

FILE: Final = "compared.json"


class Variant(Record):
    """One row of the comparison's table."""

    name: str
    runs: tuple[str, ...]
    """One for each seed, as paths below the workspace."""


class ComparisonRecord(Record):
    """What was compared."""

    format: Literal["heartcut.comparison"] = "heartcut.comparison"
    version: Literal[1] = 1
    variants: tuple[Variant, ...]


def write(workspace: Path, record: ComparisonRecord) -> None:
    """Keep what was compared in ``workspace``."""
    publish_json(workspace / FILE, record.model_dump(mode="json"))


def read(workspace: Path) -> ComparisonRecord | None:
    """What was compared last in ``workspace``; None: nothing.

    Raises:
        ArtefactMismatch: if the file is damaged.
    """
    path = workspace / FILE
    if not path.exists():
        return None
    remedy = f"Remove {path} and run `heartcut compare` again."
    return read_record(ComparisonRecord, path, made_by="heartcut compare", remedy=remedy)
