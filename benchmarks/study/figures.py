"""The figures of the study, as SVG files on white paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.study.store import ROOT, epochs_of_study, is_begun, runs_of
from benchmarks.study.tables import (
    FEWEST_SEEDS,
    STUDENTS,
    difference,
    method_of,
    of_point,
    points_of,
)
from pipeline.methods.paired_differences import Difference
from stages.report.svg_charts import COLOURS, INK, Curve, drawing, line_chart, svg

FOLDER = ROOT / "docs" / "images"
FEWEST_TEACHERS = 3
METHODS = ("KD", "LR", "LR + DS", "repaired, LR")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A difference with its interval, in shares of 1."""

    name: str
    group: int
    found: Difference


def bars(name: str, reference: str, group: int = 0) -> list[Bar]:
    """Every point of a study against one of them; an interval of two seeds says nothing."""
    if not is_begun(name):
        return []
    frame = runs_of(name)
    others = [point for point in points_of(name, frame) if point != reference]
    found = [
        Bar(
            name=point,
            group=group,
            found=difference(of_point(frame, point), of_point(frame, reference)),
        )
        for point in others
    ]
    return [bar for bar in found if bar.found.num >= FEWEST_SEEDS]


def gains() -> str | None:
    """Test accuracy minus that of KD, both students."""
    found = [
        Bar(name=f"{student}, {bar.name}", group=bar.group, found=bar.found)
        for group, (student, name) in enumerate(STUDENTS.items())
        for bar in bars(name, "KD", group)
    ]
    return forest(found, "test accuracy minus that of KD, points") if found else None


def sensitivity() -> str | None:
    """Test accuracy minus that of base."""
    found = bars("sensitivity", "base")
    return forest(found, "test accuracy minus that of base, points") if found else None


def forest(rows: Sequence[Bar], x: str) -> str:
    """A row for each difference: its mean, its 95 % interval, and the number of seeds."""
    with drawing(x, height=0.9 + 0.22 * len(rows)) as figure:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for place, row in zip(places, rows, strict=True):
            mean, low, high = (
                100 * (value or 0.0) for value in (row.found.mean, row.found.low, row.found.high)
            )
            colour = COLOURS[row.group]
            axes.plot([low, high], [place, place], color=colour)
            axes.plot([mean], [place], "o", color=colour, markersize=4)
        axes.set_yticks(places, [f"{row.name} (n = {row.found.num})" for row in rows])
        axes.set_xlabel(x)
        axes.grid(visible=True, axis="x")
        return on_paper(svg(figure))


def teachers() -> str | None:
    """Test accuracy minus that of plain training, against the teacher's."""
    if not is_begun("teachers"):
        return None
    frame = runs_of("teachers")
    if frame["teacher_accuracy_test"].nunique() < FEWEST_TEACHERS:
        return None
    x = "teacher's accuracy on the test images, %"
    with drawing(x) as figure:
        axes = figure.subplots()
        axes.axhline(0.0, color=INK, linewidth=0.8)
        for number, method in enumerate(METHODS):
            points = [point for point in set(frame["point"]) if method_of(point) == method]
            found = sorted(filter(None, (against_plain(frame, point) for point in points)))
            if not found:
                continue
            where, mean, below, above = (
                100 * np.array(column) for column in zip(*found, strict=True)
            )
            axes.errorbar(
                where,
                mean,
                yerr=[below, above],
                color=COLOURS[number],
                marker="o",
                markersize=4,
                capsize=3,
                label=method,
            )
        axes.set_xlabel(x)
        axes.set_ylabel("minus plain training, points")
        axes.grid(visible=True)
        axes.legend(fontsize=8)
        return on_paper(svg(figure))


def against_plain(frame: pd.DataFrame, point: str) -> tuple[float, float, float, float] | None:
    """The teacher's accuracy; the gain over plain training, and how far its interval reaches.

    None: no seed in common.
    """
    own = of_point(frame, point)
    found = difference(own, of_point(frame, "plain"))
    if found.mean is None:
        return None
    mean = found.mean
    low, high = (mean if end is None else end for end in (found.low, found.high))
    return float(own["teacher_accuracy_test"].iloc[0]), mean, mean - low, high - mean


def time() -> str | None:
    """Held-out accuracy against seconds of training."""
    if not is_begun("time"):
        return None
    frame = epochs_of_study("time")
    curves = [
        Curve(
            name=point,
            x=of_point(frame, point)["seconds"].to_numpy(),
            y=of_point(frame, point)["held_out_accuracy"].to_numpy(),
        )
        for point in points_of("time", frame)
    ]
    chart = line_chart(curves, x="seconds of training", y="held-out accuracy", percent=True)
    return on_paper(chart)


def on_paper(chart: str) -> str:
    """A file of its own: dark on white, whatever the page around it is like."""
    begin = chart.index(">", chart.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{chart[:begin]}{white}{chart[begin:]}".replace("currentColor", INK)


FIGURES: dict[str, Callable[[], str | None]] = {
    "gains": gains,
    "teachers": teachers,
    "sensitivity": sensitivity,
    "time": time,
}


def draw() -> None:
    """Write the figures for which there are results."""
    for name, make in FIGURES.items():
        chart = make()
        if chart is not None:
            (FOLDER / f"study-{name}.svg").write_text(chart)
