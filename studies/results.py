"""The results of the study: kept as parquet, shown as the tables of docs/results/study.md.

python studies/results.py collect WORKSPACE    # sweeps of configs/studies -> one parquet each
python studies/results.py render               # parquet -> the tables of the page
"""

import sys
from pathlib import Path

import pandas as pd

from pipeline.artefacts.run import Run
from pipeline.artefacts.sweep import OK, sweep_folder
from pipeline.sweep_statistics import Difference, paired_difference, spread
from stages.config_file import load_config

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "study"
PAGE = ROOT / "docs" / "results" / "study.md"
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


def studies() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.toml"))


def collect(workspace: Path) -> None:
    """Keep the results of every sweep of a study that was begun in ``workspace``."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in studies():
        folder = sweep_folder(workspace, name)
        rows = []
        for row in folder.rows():
            if row.status != OK or row.run_path is None:
                continue
            run = Run.open(workspace / row.run_path)
            numbers = {field: getattr(run.result, field) for field in FIELDS}
            device = run.result.cost.device
            rows.append({"point": row.point, "seed": row.seed, **numbers, "device": device})
        if rows:
            pd.DataFrame(rows).to_parquet(KEPT / f"{name}.parquet", index=False)
            print(f"{name}: {len(rows)} runs")


def table(name: str) -> str:
    """The results of one study as markdown; accuracies in per cent."""
    frame = pd.read_parquet(KEPT / f"{name}.parquet")
    order = [point for point in load_points(name) if point in set(frame["point"])]
    compared = [point for point in COMPARED if point in order]
    header = [
        "student",
        "n",
        "test",
        "held out, mean of last",
        *(f"test, minus {point}" for point in compared),
        "calibration error",
        "agrees with teacher",
        "distilled",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for point in order:
        own = frame[frame["point"] == point].set_index("seed")
        cells = [point, str(len(own)), percent(own["test_accuracy"])]
        cells.append(percent(own["held_out_accuracy_mean_of_last"]))
        for other in compared:
            reference = frame[frame["point"] == other].set_index("seed")
            cells.append("" if other == point else gain(own, reference))
        cells.append(f"{own['test_calibration_error'].mean():.3f}")
        cells.append(percent(own["teacher_agreement_test"].dropna()) or "")
        share = (own["num_distilled"] / own["num_training_samples"]).mean()
        cells.append(f"{100 * share:.1f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load_points(name: str) -> list[str]:
    """The points of a study in the order of its file."""
    return list(load_config(ROOT / "configs" / "studies" / f"{name}.toml").sweep.points)


def percent(shares: pd.Series) -> str:
    found = spread(shares)
    if found.mean is None:
        return ""
    told = f"{100 * found.mean:.2f}"
    return told if found.std is None else f"{told} ± {100 * found.std:.2f}"


def gain(own: pd.DataFrame, reference: pd.DataFrame) -> str:
    found: Difference = paired_difference(
        own["test_accuracy"].to_dict(), reference["test_accuracy"].to_dict()
    )
    if found.mean is None:
        return ""
    told = f"{100 * found.mean:+.2f}"
    if found.low is None or found.high is None:
        return told
    return f"{told} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def rendered(page: str) -> str:
    """The page with its tables made again."""
    for name in studies():
        begin = BEGIN.format(name=name)
        if begin in page:
            before, rest = page.split(begin, 1)
            _, after = rest.split(END, 1)
            page = f"{before}{begin}\n\n{table(name)}\n\n{END}{after}"
    return page


def main() -> None:
    match sys.argv[1:]:
        case ["collect", workspace]:
            collect(Path(workspace))
        case ["render"]:
            PAGE.write_text(rendered(PAGE.read_text()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
