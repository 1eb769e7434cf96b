"""Recognition of what is at a path, and errors that name it where it is the wrong thing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.artefacts.records import printable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError

_MARKERS: Final = {
    "result.json": "a run",
    "training.json": "a training under way",
    "sealed.json": "a teacher cache",
    "manifest.json": "a teacher cache",
    "soft_labels.json": "soft labels",
    "dataset.json": "a data set",
    "results.parquet": "a sweep",
    "runs": "a workspace",
    "selections": "a workspace",
    "caches": "a workspace",
}
"""Name inside a folder -> kind of the folder; the first match counts."""
_HOLDERS: Final = {
    "*/result.json": "a folder of runs",
    "*/manifest.json": "a folder of teacher caches",
    "*.parquet": "a folder of tables",
}
_FILES: Final = {".parquet": "a table", ".toml": "a configuration", ".beton": "a beton"}
_SHOWN_BY: Final = {
    "a run": "run",
    "a folder of runs": "run",
    "a teacher cache": "cache",
    "a table": "selection",
}
RUNS: Final = "a run, or a folder of runs"
ABOUT_RUNS: Final = (
    "Pass WORKSPACE/runs/NAME or WORKSPACE/runs; `heartcut train-student` makes one."
)
_TABLE: Final = "a selection table"
_ABOUT_TABLES: Final = (
    "Pass WORKSPACE/selections/NAME.parquet, WORKSPACE/NAME or a configuration; "
    "`heartcut select` makes one."
)


def kind_of(path: Path) -> str:
    """Name the kind of artefact at ``path``."""
    if path.is_dir():
        inside = [kind for name, kind in _MARKERS.items() if (path / name).exists()]
        below = (kind for shape, kind in _HOLDERS.items() if next(path.glob(shape), None))
        return inside[0] if inside else next(below, "a folder")
    return _FILES.get(path.suffix, "a file")


def refusal(path: Path, *, wanted: str, advice: str) -> ArtefactNotFound | ArtefactMismatch:
    """Make the error for a path that does not exist, or is not ``wanted``."""
    place = printable(str(path))
    if not path.exists():
        return ArtefactNotFound(f"{place} does not exist (expected {wanted}). {advice}")
    kind = kind_of(path)
    command = _SHOWN_BY.get(kind)
    shown = "" if command is None else f", or inspect it with `heartcut show {command} {place}`"
    return ArtefactMismatch(
        f"{place} is {kind} (expected {wanted}). {advice.removesuffix('.')}{shown}."
    )


def require_runs(folder: Path) -> None:
    """Reject a folder without runs."""
    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise refusal(folder, wanted=RUNS, advice=ABOUT_RUNS)


def require_no_overrides(place: str, overrides: Sequence[str]) -> None:
    """Reject --set without a configuration."""
    if overrides:
        raise ConfigError(
            f"--set needs a configuration (expected a .toml file in place of {place})."
        )


def find_table(place: str, overrides: Sequence[str]) -> Path:
    """Find a table by its path, WORKSPACE/NAME, or configuration.

    Raises:
        PipelineError: if there is no table, or several.
    """
    if place.endswith(".toml"):
        return _of_config(Path(place), overrides)
    require_no_overrides(place, overrides)
    path = Path(place)
    named = [
        path,
        path.with_name(f"{path.name}.parquet") if path.name else path,
        path.parent / "selections" / f"{path.name}.parquet",
    ]
    for known in named:
        if known.is_file() and known.suffix == ".parquet":
            return known
    folder = path / "selections" if (path / "selections").is_dir() else path
    tables = _tables_in(folder) if folder.is_dir() else []
    if len(tables) == 1:
        return tables[0]
    if tables:
        names = ", ".join(printable(table.stem) for table in tables[:8])
        raise ConfigError(
            f"{printable(str(folder))} has {len(tables)} selection tables (expected one). Pass one "
            f"of them: {names}{', ...' if len(tables) > 8 else ''}."
        )
    raise refusal(path, wanted=_TABLE, advice=_ABOUT_TABLES)


def _tables_in(folder: Path) -> list[Path]:
    if (folder / "result.json").exists():  # a run has a table of another kind
        return []
    return sorted(set(folder.glob("*.parquet")) - set(folder.glob("*.scores.parquet")))


def _of_config(path: Path, overrides: Sequence[str]) -> Path:
    """Find the table that `select` writes for a configuration."""
    from pipeline.artefacts.dataset import Dataset
    from pipeline.artefacts.selection import selection_path
    from stages.caches import Caches  # loads torch, which a table does not need
    from stages.config.file import load_config

    config = load_config(path, overrides=list(overrides))
    folder, name = config.selections_folder, config.select.name
    if name:
        return selection_path(folder, "", name=name)
    caches = Caches(config=config, dataset=Dataset.open(config.data_folder))
    return selection_path(folder, caches.identities.selection.id)
