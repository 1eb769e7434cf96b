"""show run: runs -> their accuracy, cost and training curves.

Reads result.json, metrics.jsonl and config.toml of every run, and `compared.json` of its workspace
for the names of the variants.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from pipeline.artefacts import comparison
from pipeline.artefacts.records import Record
from pipeline.artefacts.run import RESULT, Run, RunResult
from pipeline.errors import ConfigError
from pipeline.methods.paired_differences import spread
from stages.config.file import load_config
from stages.run_groups import Group, grouped, is_student, with_different_names
from stages.show.places import ABOUT_RUNS, RUNS, refusal

NUMBERS: Final = (
    "held_out_accuracy_last",
    "held_out_accuracy_best",
    "held_out_accuracy_mean_of_last",
    "test_accuracy",
    "test_loss",
    "test_calibration_error",
    "teacher_agreement_held_out",
    "teacher_agreement_test",
    "num_distilled",
)
"""Fields of result.json that are averaged over seeds."""
COSTS: Final = ("seconds", "training_images_per_second", "teacher_forwards_saved")


class RunShown(Record):
    """One run."""

    path: str
    name: str
    """Name of its folder."""
    group: str
    """Name of its group."""
    kind: Literal["student", "teacher"]
    result: RunResult
    """Content of result.json."""
    epochs: tuple[dict[str, float], ...]
    """Lines of metrics.jsonl."""


class Seeds(Record):
    """One number over the seeds of a group."""

    num: int
    mean: float | None
    """None if no run has it."""
    sd: float | None
    """Standard deviation of the sample; None below two seeds."""


class GroupShown(Record):
    """Runs that differ only by their seeds."""

    name: str
    runs: tuple[str, ...]
    """Paths, by seed."""
    seeds: tuple[int, ...]
    mean_of_last: int
    num_training_samples: int
    numbers: dict[str, Seeds]
    """`NUMBERS` of result.json, and `COSTS` of its cost."""


class RunsShown(Record):
    """Content of `show run`; its JSON has these keys."""

    runs: tuple[RunShown, ...]
    """Runs in the order of the groups, then by seed."""
    groups: tuple[GroupShown, ...]
    """Groups with the best mean of the last held-out accuracies first."""


def execute(places: Sequence[Path], overrides: Sequence[str] = ()) -> RunsShown:
    """Describe the runs at ``places``: runs, folders of runs, workspaces, or configurations.

    Raises:
        ArtefactNotFound: if there are none.
        ArtefactMismatch: if one is damaged, or not a run.
        ConfigError: if overrides were given without a configuration.
    """
    if overrides and not any(place.suffix == ".toml" for place in places):
        raise ConfigError("--set needs a configuration (expected a .toml file among the paths).")
    folders = [folder for place in places for folder in _folders(place, overrides)]
    runs = {run.result.id: run for run in map(Run.open, folders)}
    groups = sorted(
        with_different_names(_named(grouped(runs.values()))), key=_last_held_out, reverse=True
    )
    return RunsShown(
        runs=tuple(_run(run, group.name) for group in groups for run in group.runs),
        groups=tuple(map(_group, groups)),
    )


def _folders(place: Path, overrides: Sequence[str]) -> list[Path]:
    """Find the runs at one path."""
    folder = place
    if place.suffix == ".toml":
        folder = load_config(place, overrides=list(overrides)).runs_folder
    elif (place / RESULT).is_file():
        return [place]
    elif (place / "runs").is_dir():
        folder = place / "runs"
    found = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    if not found:
        raise refusal(folder, wanted=RUNS, advice=ABOUT_RUNS)
    return found


def _named(groups: Iterable[Group]) -> Iterator[Group]:
    """Name groups as the last comparison did, or by their settings."""
    names: dict[Path, dict[Path, str]] = {}
    for group in groups:
        place = min(group.runs, key=lambda run: run.result.seed).path.resolve()
        workspace = place.parent.parent
        if workspace not in names:
            compared = comparison.read(workspace)
            names[workspace] = {path: name for name, own in compared.items() for path in own}
        yield replace(group, name=names[workspace].get(place, group.name))


def _last_held_out(group: Group) -> float:
    found = spread(group.by_seed("held_out_accuracy_mean_of_last").values())
    return found.mean or 0.0


def _run(run: Run, group: str) -> RunShown:
    return RunShown(
        path=str(run.path),
        name=run.path.resolve().name,
        group=group,
        kind="student" if is_student(run) else "teacher",
        result=run.result,
        epochs=tuple(run.epochs()),
    )


def _group(group: Group) -> GroupShown:
    results = [run.result for run in group.runs]
    numbers: dict[str, Seeds] = {name: _seeds(results, name) for name in NUMBERS}
    costs = [result.cost for result in results]
    return GroupShown(
        name=group.name,
        runs=tuple(str(run.path) for run in group.runs),
        seeds=tuple(result.seed for result in results),
        mean_of_last=results[0].mean_of_last,
        num_training_samples=results[0].num_training_samples,
        numbers=numbers | {name: _seeds(costs, name) for name in COSTS},
    )


def _seeds(records: Sequence[Record], name: str) -> Seeds:
    """Summarise one number of the records that have it."""
    dumped: Sequence[Mapping[str, float | None]] = [record.model_dump() for record in records]
    found = spread(value for value in (one[name] for one in dumped) if value is not None)
    return Seeds(num=found.num, mean=found.mean, sd=found.std)
