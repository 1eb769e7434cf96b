"""Runs, found, grouped by their settings and named, for `show`, `report` and the study."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline.artefacts import comparison
from pipeline.artefacts.records import printable, read_record
from pipeline.artefacts.run import RESULT, Run, read_settings
from pipeline.artefacts.selection import SelectionRecord, find_selection, read_selection_record
from pipeline.artefacts.soft_labels import SoftLabelRecord, soft_label_path
from pipeline.artefacts.sweep import OK, RESULTS, SweepFolder, sweep_folder
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.provenance import identity, short
from stages.config.file import load_config
from stages.config.root import Config

_NAMES_OF_REVISION: Final = {
    "wrong": "label revision of wrong samples",
    "all": "label revision",
    "swap": "swap",
    "drop-wrong": "drop wrong",
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only by their seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def is_plain(self) -> bool:
        """True for students without a teacher."""
        return self.runs[0].result.method is None and is_student(self.runs[0])

    def by_seed(self, field: str) -> dict[int, float]:
        """List one number of the results by seed."""
        return {run.result.seed: float(getattr(run.result, field)) for run in self.runs}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs on one data set, in groups."""

    workspace: Path
    groups: list[Group]
    config: Config | None
    """Configuration, if one was given: it may name the place of the cache."""

    @property
    def num_runs(self) -> int:
        return sum(len(group.runs) for group in self.groups)

    @property
    def caches(self) -> list[str]:
        """IDs of the teacher caches, each once, in the order of the runs."""
        found = (run.result.inputs.cache for group in self.groups for run in group.runs)
        return list(dict.fromkeys(cache for cache in found if cache is not None))


def find_runs(places: Sequence[Path], overrides: Sequence[str]) -> Runs:
    """Find the runs at ``places``: configurations, workspaces, sweeps, or runs.

    Raises:
        ArtefactNotFound: if there are none.
        ArtefactMismatch: if they belong to several data sets.
        ConfigError: if overrides were given without a configuration.
    """
    groups: list[Group] = []
    single: list[Run] = []
    config = None
    for place in places:
        if place.suffix == ".toml":
            config = load_config(place, overrides=list(overrides))
            groups += _of_config(config)
        elif (place / RESULT).exists():
            single.append(Run.open(place))
        else:
            groups += _of_place(place)
    groups += grouped(single)
    if overrides and config is None:
        raise ConfigError("--set needs a configuration (expected a .toml file among the runs).")
    groups = _joined(groups)
    first = groups[0].runs[0]
    _require_one_dataset(groups)
    workspace = _near(first.path.resolve().parent.parent) if config is None else config.workspace
    return Runs(workspace=workspace, groups=groups, config=config)


def _near(folder: Path) -> Path:
    """Make ``folder`` relative if it is below the working directory: absolute paths name people."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _of_config(config: Config) -> list[Group]:
    """Find the runs that were compared or swept; without either, all runs."""
    found = [
        group
        for group in _named(comparison.read(config.workspace))
        if group.name in config.compare.variants
    ]
    if config.sweep.axes or config.sweep.points:
        folder = sweep_folder(config.workspace, config.sweep.name)
        if folder.results.exists():
            found += _of_sweep(folder, config.workspace)
    return found or _of_folder(config.runs_folder)


def _named(paths: Mapping[str, Iterable[Path]]) -> list[Group]:
    """Group the runs that still exist by name."""
    groups = []
    for name, own in paths.items():
        there = [path for path in own if (path / RESULT).exists()]
        if there:
            groups.append(Group(name=name, runs=tuple(map(Run.open, there))))
    return groups


def _of_place(place: Path) -> list[Group]:
    sweep = place.parent if place.name == RESULTS else place
    if (sweep / RESULTS).exists():
        folder = SweepFolder(path=sweep)
        found = _of_sweep(folder, sweep.resolve().parent.parent)
        if not found:
            raise ArtefactNotFound(
                f"{folder.results} has no run that succeeded. Run `heartcut sweep` again."
            )
        return found
    if not place.exists():
        raise ArtefactNotFound(
            f"{place} does not exist (expected runs, a folder of runs, a sweep, or a "
            "configuration). Train with `heartcut compare` or `heartcut train-student` first."
        )
    if not (place / "runs").is_dir():
        return _of_folder(place)
    sweeps = [SweepFolder(path=path.parent) for path in sorted(place.glob(f"sweeps/*/{RESULTS}"))]
    named = [group for folder in sweeps for group in _of_sweep(folder, place)]
    compared = _named(comparison.read(place))
    return [*compared, *named, *_of_folder(place / "runs")]  # named groups keep their names


def _of_folder(folder: Path) -> list[Group]:
    """Find all students in a folder of runs."""
    runs = [Run.open(path.parent) for path in sorted(folder.glob(f"*/{RESULT}"))]
    students = [run for run in runs if is_student(run)]
    if not students:
        raise ArtefactNotFound(
            f"{folder} has no run of a student. Train one with `heartcut compare` or "
            "`heartcut train-student`."
        )
    return grouped(students)


def _of_sweep(folder: SweepFolder, workspace: Path) -> list[Group]:
    paths: dict[str, list[Path]] = {}
    for row in folder.rows():
        if row.status == OK and row.run_path is not None:
            paths.setdefault(row.point, []).append(workspace / row.run_path)
    return _named(paths)


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Group runs that have the same settings, apart from the seed, and the same inputs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_identity_but_for_seed(run), []).append(run)
    return [Group(name=_name(own[0]), runs=tuple(own)) for own in found.values()]


def _identity_but_for_seed(run: Run) -> str:
    settings = {key: value for key, value in read_settings(run.path).items() if key != "seed"}
    return identity("group", [settings, run.result.inputs.model_dump(mode="json")])


def is_student(run: Run) -> bool:
    """Return True for a run that was trained as a student, not as a teacher."""
    return "distil" in read_settings(run.path)


def _name(run: Run) -> str:
    """Name a run by its method, label revision and selection."""
    result = run.result
    if result.method is None:
        return f"{result.arch}, {'no teacher' if is_student(run) else 'teacher'}"
    parts = [result.method.upper()]
    labels, chosen = soft_labels_of(run), _selection_record_of(run)
    if labels is not None:
        made = labels.identity
        parts += [_NAMES_OF_REVISION[made.revision]] if made.revision != "none" else []
        parts += ["repaired head"] if made.repair is not None else []
        parts += ["clean view"] if made.views == (0,) else []
    if chosen is not None and chosen.identity.strategy != "all":
        share = 100 * result.num_distilled / result.num_training_samples
        parts.append(f"{chosen.identity.strategy} {share:.0f} %")
    parts += ["online"] if result.online else []
    return f"{result.arch}, {' + '.join(parts)}"


def soft_labels_of(run: Run) -> SoftLabelRecord | None:
    """Read the record of the soft labels of a run, if they are in its workspace."""
    labels = run.result.inputs.soft_labels
    if labels is None:
        return None
    path = soft_label_path(run.path.parent.parent / "selections", labels) / "soft_labels.json"
    if not path.exists():
        return None
    remedy = f"Remove {path.parent} and run `heartcut select` again."
    return read_record(SoftLabelRecord, path, made_by="heartcut select", remedy=remedy)


def _selection_record_of(run: Run) -> SelectionRecord | None:
    path = selection_path_of(run)
    return None if path is None else read_selection_record(path)


def selection_path_of(run: Run) -> Path | None:
    """Find the selection of a run, if it is in its workspace."""
    selection = run.result.inputs.selection
    if selection is None:
        return None
    return find_selection(run.path.parent.parent / "selections", selection)


def _joined(groups: Sequence[Group]) -> list[Group]:
    """Keep every run once, with all seeds of a student in its first group; make names printable."""
    found: dict[str, Group] = {}
    seen: set[str] = set()
    for group in groups:
        own = tuple(run for run in group.runs if run.result.id not in seen)
        seen |= {run.result.id for run in own}
        if not own:
            continue
        key = _identity_but_for_seed(own[0])
        first = found.get(key, replace(group, name=printable(group.name), runs=()))
        found[key] = replace(first, runs=first.runs + own)
    return with_different_names(found.values())


def with_different_names(groups: Iterable[Group]) -> list[Group]:
    """Give groups different names, and put seeds in order."""
    found: dict[str, Group] = {}
    for group in groups:
        runs = tuple(sorted(group.runs, key=lambda run: run.result.seed))
        name = group.name
        if name in found:
            name = f"{name} ({short(runs[0].result.id)[:6]})"
        found[name] = replace(group, name=name, runs=runs)
    return list(found.values())


def _require_one_dataset(groups: Sequence[Group]) -> None:
    first = groups[0].runs[0]
    for run in (run for group in groups for run in group.runs):
        found, expected = run.result.inputs.dataset, first.result.inputs.dataset
        if found != expected:
            raise ArtefactMismatch(
                f"{run.path} was trained on data set {short(found)} (expected "
                f"{short(expected)}, that of {first.path}). Name only runs of one data set."
            )
