"""The tables of docs/results/demo.md, from the results that `benchmarks.study.demo` stored."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.methods.paired_differences import paired_difference, spread
from stages.text import markdown_table, percent, percent_over_seeds, percentage_points

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "demo"
PAGE = ROOT / "docs" / "results" / "demo.md"
BEGIN, END = "<!-- table of {name}: benchmarks/study/demo.py -->", "<!-- end of table -->"
NO_TEACHER, KD, REVISION = VARIANTS = ("no teacher", "KD", "label revision")


def rendered(page: str) -> str:
    """The page with its tables written again."""
    for name, table in TABLES.items():
        before, rest = page.split(BEGIN.format(name=name), 1)
        _, after = rest.split(END, 1)
        page = f"{before}{BEGIN.format(name=name)}\n\n{table(results(name))}\n\n{END}{after}"
    return page


def results(name: str) -> pd.DataFrame:
    """Stored results, a row for each student."""
    return pd.read_csv(KEPT / f"{name}.csv")


def students(frame: pd.DataFrame) -> str:
    """Teacher and variants on every shown split, with differences of label revision."""
    header = ("split", "teacher", *VARIANTS, f"minus {NO_TEACHER}", f"minus {KD}")
    rows = []
    for split, own in frame.groupby("split", sort=False):
        accuracies = by_variant(own)
        rows.append(
            (
                str(split),
                percent(own["teacher_accuracy"].iloc[0]),
                *(over_seeds(accuracies[variant]) for variant in VARIANTS),
                *(difference(accuracies[REVISION], accuracies[name]) for name in (NO_TEACHER, KD)),
            )
        )
    return markdown_table([header, *rows], aligned=False)


def baseline(frame: pd.DataFrame) -> str:
    """Mean accuracy without a teacher on every schedule."""
    rows = [
        (f"{rate:g}", str(epochs), percent(own["test_accuracy"].mean()))
        for (rate, epochs), own in frame.groupby(["lr", "epochs"], sort=False)
    ]
    return markdown_table([("peak rate", "epochs", NO_TEACHER), *rows], aligned=False)


def images(frame: pd.DataFrame) -> str:
    """Mean accuracies of teacher and variants for every noise and number of images."""
    header = ("noise", "images", "teacher", *VARIANTS, f"minus {NO_TEACHER}", f"minus {KD}")
    rows = []
    for (noise, number), own in frame.groupby(["noise", "images"]):
        means = own.groupby("variant")["test_accuracy"].mean()
        gains = (
            percentage_points(means[REVISION] - means[name], None, None) for name in VARIANTS[:2]
        )
        teacher = percent(own["teacher_accuracy"].mean())
        rows.append((f"{noise:g}", str(number), teacher, *map(percent, means[[*VARIANTS]]), *gains))
    return markdown_table([header, *rows], aligned=False)


TABLES = {"students": students, "baseline": baseline, "images": images}
"""Name of the stored results and of the table -> what makes the table."""


def by_variant(students: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Variant -> seed -> test accuracy."""
    return {
        str(variant): dict(zip(own["seed"], own["test_accuracy"], strict=True))
        for variant, own in students.groupby("variant")
    }


def over_seeds(accuracies: Mapping[int, float]) -> str:
    found = spread(accuracies.values())
    return percent_over_seeds(found.mean, found.std)


def difference(own: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """Mean difference between equal seeds with its 95 % interval, in points."""
    found = paired_difference(own, reference)
    assert found.mean is not None  # both have every seed
    return percentage_points(found.mean, found.low, found.high)
