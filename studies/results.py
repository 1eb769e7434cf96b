"""The results of the study: kept as parquet, shown in tables of its page and of README.md.

python studies/results.py collect WORKSPACE    # add runs of configs/studies to what is kept
python studies/results.py left                 # points and seeds of which nothing is kept
python studies/results.py render               # parquet -> the tables and figures of the pages

Runs of many machines and days make one study. What is kept of a run:

    <study>.parquet           one row per point and seed: `FIELDS` of its result.json, ids of its
                              data set, cache and run, device, library versions
    <study>.epochs.parquet    one row per point, seed and epoch: seconds, held-out accuracy
"""

import sys
from pathlib import Path

import pandas as pd

from pipeline.artefacts.run import Run, read_metrics
from pipeline.artefacts.sweep import OK, sweep_folder
from pipeline.sweep_statistics import Difference, paired_difference, spread
from stages.config_file import load_config
from stages.sweep_config import SweepConfig

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "study"
PAGES = (
    ROOT / "docs" / "results" / "study.md",
    ROOT / "docs" / "index.md",
    ROOT / "README.md",
)
BEGIN, END = "<!-- table of {name}: studies/results.py -->", "<!-- end of table -->"
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
COMPARED = ("plain", "KD", "base")
"""Points that the others are compared with, where a study has them."""
HEADLINE = "headline"
"""The table of README.md: both students, the points that matter most."""
STUDENTS = {"ResNet-8": "ablation-resnet8", "ResNet-20": "ablation-resnet20"}
SHOWN = ("plain", "KD", "LR + DS")
KEY = ["point", "seed"]


def studies() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.toml"))


def collect(workspace: Path) -> None:
    """Add what sweeps of the studies gave in ``workspace``; a run of the same name is replaced."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in studies():
        runs = finished(workspace, name)
        if not runs:
            continue
        rows = [row_of(run, key) for key, run in runs.items()]
        epochs = [line for key, run in runs.items() for line in epochs_of(run, key)]
        added(pd.DataFrame(rows), KEPT / f"{name}.parquet", name)
        added(pd.DataFrame(epochs), KEPT / f"{name}.epochs.parquet", name)
        print(f"{name}: {len(rows)} runs of {workspace}, {len(kept(name))} in all")


def finished(workspace: Path, name: str) -> dict[tuple[str, int], Run]:
    """The runs of a study in a workspace by point and seed."""
    return {
        (row.point, row.seed): Run.open(workspace / row.run_path)
        for row in sweep_folder(workspace, name).rows()
        if row.status == OK and row.run_path is not None
    }


def row_of(run: Run, key: tuple[str, int]) -> dict[str, object]:
    result = run.result
    return {
        **dict(zip(KEY, key, strict=True)),
        **{field: getattr(result, field) for field in FIELDS},
        "dataset": result.inputs.dataset,
        "cache": result.inputs.cache,
        "run": result.id,
        "device": result.cost.device,
        "torch": result.versions["torch"],
    }


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
    """Put the rows of ``new`` in the place of those of the same runs, in the study's order."""
    if path.exists():
        old = pd.read_parquet(path)
        if "dataset" in old and set(old["dataset"]) != set(new["dataset"]):
            sys.exit(
                f"{path} is of the data set {', '.join(sorted(set(old['dataset'])))} (found "
                f"{', '.join(sorted(set(new['dataset'])))}). Prepare the same images, or remove it."
            )
        replaced = pd.MultiIndex.from_frame(old[KEY]).isin(pd.MultiIndex.from_frame(new[KEY]))
        new = pd.concat([old[~replaced], new], ignore_index=True)
    order = {point: place for place, point in enumerate(sweep_of(name).points)}
    new = new[new["point"].isin(order)]
    columns = [column for column in (*KEY, "epoch") if column in new]
    new = new.sort_values(columns, key=lambda c: c.map(order) if c.name == "point" else c)
    new.reset_index(drop=True).to_parquet(path, index=False)


def kept(name: str) -> pd.DataFrame:
    """The rows of a study."""
    return pd.read_parquet(KEPT / f"{name}.parquet")


def sweep_of(name: str) -> SweepConfig:
    """The points and seeds of a study."""
    return load_config(ROOT / "configs" / "studies" / f"{name}.toml").sweep


def left() -> str:
    """The points of every study and the seeds of which nothing is kept, as options of a sweep."""
    lines = []
    for name in studies():
        sweep = sweep_of(name)
        done = set()
        if (KEPT / f"{name}.parquet").exists():
            done = set(kept(name)[KEY].itertuples(index=False, name=None))
        lines.append(f"{name}: {len(done)} of {len(sweep.points) * len(sweep.seeds)} runs are kept")
        for point in sweep.points:
            seeds = [seed for seed in sweep.seeds if (point, seed) not in done]
            if seeds:
                told = " ".join(f"--seed {seed}" for seed in seeds)
                lines.append(f'  --point "{point}" {told}')
    return "\n".join(lines)


def table(name: str) -> str:
    """The results of one study as markdown; accuracies in per cent."""
    frame = kept(name)
    order = [point for point in sweep_of(name).points if point in set(frame["point"])]
    compared = [point for point in COMPARED if point in order]
    header = [
        "student",
        "n",
        "held out, mean of last",
        "test",
        *(f"test, minus {point}" for point in compared),
        "calibration error",
        "agrees with teacher",
        "distilled",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for point in order:
        own = of_point(frame, point)
        cells = [point, str(len(own)), percent(own["held_out_accuracy_mean_of_last"])]
        cells.append(percent(own["test_accuracy"]))
        cells += ["" if other == point else gain(own, of_point(frame, other)) for other in compared]
        cells.append(f"{own['test_calibration_error'].mean():.3f}")
        cells.append(percent(own["teacher_agreement_test"].dropna()))
        share = (own["num_distilled"] / own["num_training_samples"]).mean()
        cells.append(f"{100 * share:.1f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_point(frame: pd.DataFrame, point: str) -> pd.DataFrame:
    """The rows of a point by seed."""
    return frame[frame["point"] == point].set_index("seed")


def percent(shares: pd.Series) -> str:
    found = spread(shares)
    if found.mean is None:
        return ""
    told = f"{100 * found.mean:.2f}"
    return told if found.std is None else f"{told} ± {100 * found.std:.2f}"


def gain(own: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Point minus another over the seeds that both have, with its 95 % interval."""
    found: Difference = paired_difference(by_seed(own), by_seed(reference))
    if found.mean is None:
        return ""
    told = f"{100 * found.mean:+.2f}"
    if found.low is None or found.high is None:
        return told
    return f"{told} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def by_seed(of_one_point: pd.DataFrame) -> dict[int, float]:
    """Test accuracies."""
    seeds = map(int, of_one_point.index)
    return dict(zip(seeds, of_one_point["test_accuracy"].tolist(), strict=True))


def headline() -> str:
    """Test accuracy of the students under the seeds that all points of a student have."""
    of_all = SHOWN[-1]
    header = ["student", "n", *SHOWN, *(f"{of_all}, minus {point}" for point in SHOWN[:-1])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for student, name in STUDENTS.items():
        frame = kept(name)
        points = {point: of_point(frame, point) for point in SHOWN}
        common = sorted(set.intersection(*(set(own.index) for own in points.values())))
        if not common:
            continue
        points = {point: own.loc[common] for point, own in points.items()}
        cells = [student, str(len(common))]
        cells += [percent(own["test_accuracy"]) for own in points.values()]
        cells += [gain(points[of_all], points[point]) for point in SHOWN[:-1]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rendered(page: str) -> str:
    """A page with its tables made again."""
    for name in (HEADLINE, *studies()):
        begin = BEGIN.format(name=name)
        if begin in page:
            before, rest = page.split(begin, 1)
            _, after = rest.split(END, 1)
            made = headline() if name == HEADLINE else table(name)
            page = f"{before}{begin}\n\n{made}\n\n{END}{after}"
    return page


def main() -> None:
    match sys.argv[1:]:
        case ["collect", workspace]:
            collect(Path(workspace))
        case ["left"]:
            print(left())
        case ["render"]:
            for page in PAGES:
                page.write_text(rendered(page.read_text()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
