"""compared.json: the runs of the last comparison, by the names of their variants.

<workspace>/compared.json    written when `compare` is done; the next comparison replaces it
"""

from collections.abc import Iterable, Mapping
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
    """compared.json."""

    format: Literal["heartcut.comparison"] = "heartcut.comparison"
    version: Literal[1] = 1
    variants: tuple[Variant, ...]


def write(workspace: Path, runs: Mapping[str, Iterable[Path]]) -> None:
    """Keep the names of variants and the paths of their runs in ``workspace``."""
    variants = (
        Variant(name=name, runs=tuple(str(path.relative_to(workspace)) for path in own))
        for name, own in runs.items()
    )
    record = ComparisonRecord(variants=tuple(variants))
    publish_json(workspace / FILE, record.model_dump(mode="json"))


def read(workspace: Path) -> dict[str, list[Path]]:
    """Names and run paths of the last comparison in ``workspace``; {} where there is none.

    Raises:
        ArtefactMismatch: if the file is damaged.
    """
    path = workspace / FILE
    if not path.exists():
        return {}
    remedy = f"Remove {path} and run `heartcut compare` again."
    record = read_record(ComparisonRecord, path, made_by="heartcut compare", remedy=remedy)
    return {variant.name: [workspace / run for run in variant.runs] for variant in record.variants}
