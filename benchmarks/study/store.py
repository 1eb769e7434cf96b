"""The stored results of the study, as parquet files in docs/results/study.

    <study>.parquet           one row per point and seed: `FIELDS` of its result.json, its teacher's
                              accuracy in the clean view, ids of its data set, cache and run,
                              device, library versions
    <study>.epochs.parquet    one row per point, seed and epoch: seconds, held-out accuracy
    <study>.replaced.parquet  rows of the same form, for runs that were repeated on another kind of
                              processor: runs that are compared should come from one kind

Runs of several machines and days make one study. A run that two studies need is made once.
"""

import math
import sys
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.publishing import publishing_file
from pipeline.artefacts.run import Run, read_metrics
from pipeline.artefacts.sweep import OK, sweep_folder
from stages.config.file import load_config
from stages.config.root import Config
from stages.config.sweep import SweepConfig
from stages.report.teacher import teacher_of
from stages.sweep.points import settings_id, sweep_points
from stages.text import counted

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "study"
FIELDS = (
    "test_accuracy",
    "held_out_accuracy_mean_of_last",
    "held_out_accuracy_last",
    "held_out_accuracy_best",
    "test_loss",
    "test_calibration_error",
    "teacher_agreement_test",
    "num_distilled",
    "num_training_samples",
)
KEY = ["point", "seed"]
Runs: TypeAlias = dict[tuple[str, int], Run]
"""By point and seed."""
TIMED = "time"
"""The study whose runs had the machine to themselves, so it shares no runs with the others."""


def studies() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.toml"))


def collect(workspace: Path) -> None:
    """Add the runs of the studies' sweeps in ``workspace``; they replace runs of the same name."""
    KEPT.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.open(workspace / "data")
    for name in studies():
        runs = of_teachers_kept(finished(workspace, name), name)
        if not runs:
            continue
        rows = [row_of(run, key, workspace, dataset) for key, run in runs.items()]
        epochs = [line for key, run in runs.items() for line in epochs_of(run, key)]
        added(pd.DataFrame(rows), KEPT / f"{name}.parquet", name)
        added(pd.DataFrame(epochs), KEPT / f"{name}.epochs.parquet", name)
        found = counted(len(rows), "run")
        print(f"{name}: {found} of {workspace}, {len(runs_of(name))} in all")
    for name in studies():
        if name != TIMED:
            adopt(name)


def of_teachers_kept(runs: Runs, name: str) -> Runs:
    """Drop runs of a teacher whose stored students learnt from other weights of this teacher.

    Another kind of processor rounds differently, so a teacher trained there is another network. Its
    students are compared among themselves. They replace the stored students only if they cover
    all stored points and seeds of their teacher.
    """
    if not is_begun(name):
        return runs
    old = runs_of(name)
    taken: Runs = {}
    for teacher in dict.fromkeys(teacher_of_point(point) for point, _ in runs):
        new = {key: run for key, run in runs.items() if teacher_of_point(key[0]) == teacher}
        kept = old[old["point"].map(teacher_of_point) == teacher]
        same = {run.result.inputs.cache for run in new.values()} <= set(kept["cache"])
        if not teacher or same or keys_of(kept) <= set(new):
            taken |= new
            continue
        print(
            f"{name}: left out {counted(len(new), 'run')} of a teacher `{teacher}` that is not the "
            f"teacher of the {counted(len(kept), 'stored student')}. Train all of these students "
            "from the new teacher to replace them."
        )
    return taken


def adopt(name: str) -> None:
    """Copy runs with the same settings from other studies, for seeds that a point lacks.

    A study without stored runs stays without.
    """
    if not is_begun(name):
        return
    seeds, settings = sweep_of(name).seeds, settings_of(name)
    others = [other for other in studies() if other not in (name, TIMED) and is_begun(other)]
    for other in others:
        twins = {mark: point for point, mark in settings_of(other).items()}
        same = {twins[mark]: point for point, mark in settings.items() if mark in twins}
        own = pd.MultiIndex.from_frame(runs_of(name)[KEY])
        for ending, rows in (("", runs_of(other)), (".epochs", epochs_of_study(other))):
            rows = rows[rows["point"].isin(same) & rows["seed"].isin(seeds)]
            rows = rows.assign(point=rows["point"].map(same))
            rows = rows[~pd.MultiIndex.from_frame(rows[KEY]).isin(own)]
            if len(rows):
                added(rows, KEPT / f"{name}{ending}.parquet", name)


def settings_of(name: str) -> dict[str, str]:
    """Point of a study -> hash of its settings without the seed."""
    points = sweep_points(config_of(name))
    return {point.name: settings_id(point.config) for point in points if point.config is not None}


def teacher_of_point(point: str) -> str:
    """The teacher in a point's name `teacher: method`; empty in a study of one teacher."""
    return point.rpartition(": ")[0]


def finished(workspace: Path, name: str) -> Runs:
    """The runs of a study in a workspace by point and seed."""
    return {
        (row.point, row.seed): Run.open(workspace / row.run_path)
        for row in sweep_folder(workspace, name).rows()
        if row.status == OK and row.run_path is not None
    }


def row_of(run: Run, key: tuple[str, int], workspace: Path, dataset: Dataset) -> dict[str, object]:
    result = run.result
    return {
        **dict(zip(KEY, key, strict=True)),
        **{field: getattr(result, field) for field in FIELDS},
        **accuracies_of_teacher(workspace, result.inputs.cache, dataset),
        "dataset": result.inputs.dataset,
        "cache": result.inputs.cache,
        "run": result.id,
        "device": result.cost.device,
        "torch": result.versions["torch"],
    }


def accuracies_of_teacher(workspace: Path, cache: str | None, dataset: Dataset) -> dict[str, float]:
    """Accuracies in the clean view on held-out and test images; NaN: no teacher, or not cached."""
    found = {"teacher_accuracy_held_out": math.nan, "teacher_accuracy_test": math.nan}
    if cache is None:
        return found
    teacher = teacher_of(workspace, cache, dataset, None)
    if teacher is not None:
        found["teacher_accuracy_held_out"] = teacher.cache.summary.accuracy_held_out[0]
        if teacher.test is not None:
            found["teacher_accuracy_test"] = teacher.test.summary.accuracy_training[0]
    return found


def epochs_of(run: Run, key: tuple[str, int]) -> list[dict[str, object]]:
    seconds = 0.0
    lines: list[dict[str, object]] = []
    for line in read_metrics(run.path):
        seconds += line["seconds"]
        lines.append(
            {
                **dict(zip(KEY, key, strict=True)),
                "epoch": int(line["epoch"]),
                "seconds": seconds,
                "held_out_accuracy": line["held_out_accuracy"],
            }
        )
    return lines


def added(new: pd.DataFrame, path: Path, name: str) -> None:
    """Write the rows of ``new`` in place of rows of the same runs, in the study's order."""
    if path.exists():
        old = pd.read_parquet(path)
        if "dataset" in old and set(old["dataset"]) != set(new["dataset"]):
            sys.exit(
                f"{path} is of the data set {', '.join(sorted(set(old['dataset'])))} (found "
                f"{', '.join(sorted(set(new['dataset'])))}). Prepare the same images, or remove it."
            )
        replaced = pd.MultiIndex.from_frame(old[KEY]).isin(pd.MultiIndex.from_frame(new[KEY]))
        if "device" in old:
            put_aside(old[replaced], new, name)
        new = pd.concat([old[~replaced], new], ignore_index=True)
    order = {point: place for place, point in enumerate(sweep_of(name).points)}
    new = new[new["point"].isin(order)]
    columns = [column for column in (*KEY, "epoch") if column in new]
    new = new.sort_values(columns, key=lambda c: c.map(order) if c.name == "point" else c)
    with publishing_file(path) as partial:
        new.reset_index(drop=True).to_parquet(partial, index=False)


def put_aside(old: pd.DataFrame, new: pd.DataFrame, name: str) -> None:
    """Keep rows of ``old`` that a run on another kind of processor replaces."""
    now = old[KEY].merge(new, on=KEY)["device"].map(processor_of).to_numpy()
    aside = old[old["device"].map(processor_of).to_numpy() != now]
    if len(aside):
        kept = pd.concat([replaced_runs_of(name), aside]).drop_duplicates("run")
        with publishing_file(KEPT / f"{name}.replaced.parquet") as partial:
            kept.to_parquet(partial, index=False)


def processor_of(device: str) -> str:
    """The first part of a description: threads and precision follow."""
    return device.split(",")[0]


def is_begun(name: str) -> bool:
    """Return True if runs of a study are stored."""
    return (KEPT / f"{name}.parquet").exists()


def keys_of(frame: pd.DataFrame) -> set[tuple[str, int]]:
    """Points and seeds of rows."""
    return set(frame[KEY].itertuples(index=False, name=None))


def runs_of(name: str) -> pd.DataFrame:
    """The rows of a study."""
    return pd.read_parquet(KEPT / f"{name}.parquet")


def replaced_runs_of(name: str) -> pd.DataFrame:
    """The rows that `put_aside` kept; an empty table if there are none."""
    path = KEPT / f"{name}.replaced.parquet"
    return pd.read_parquet(path) if path.exists() else runs_of(name).head(0)


def epochs_of_study(name: str) -> pd.DataFrame:
    """The epochs of a study."""
    return pd.read_parquet(KEPT / f"{name}.epochs.parquet")


def config_of(name: str) -> Config:
    """The configuration of a study."""
    return load_config(ROOT / "configs" / "studies" / f"{name}.toml")


def sweep_of(name: str) -> SweepConfig:
    """The points and seeds of a study."""
    return config_of(name).sweep


def left() -> str:
    """Points and seeds without a stored run, for every study, as options of a sweep."""
    lines = []
    for name in studies():
        sweep = sweep_of(name)
        done = keys_of(runs_of(name)) if is_begun(name) else set()
        lines.append(
            f"{name}: {len(done)} of {len(sweep.points) * len(sweep.seeds)} runs are stored"
        )
        for point in sweep.points:
            seeds = [seed for seed in sweep.seeds if (point, seed) not in done]
            if seeds:
                printed = " ".join(f"--seed {seed}" for seed in seeds)
                lines.append(f'  --point "{point}" {printed}')
    return "\n".join(lines)
