"""The figures of the study, as SVG files with a white background."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes

from benchmarks.study.differences import TEACHERS_STUDY
from benchmarks.study.names import variant_name
from benchmarks.study.store import ROOT, epochs_of_study, is_begun, runs_of
from benchmarks.study.summaries import by_accuracy, named
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
LABELS = {"KD": (64.5, -11.2), "LR": (61.2, 1.5)}
"""Method of the picture of teachers -> where its name stands."""
NO_TEACHER, CAPTION = (85.4, -0.4), (85.4, -11.5)
LOOKS, MARKERS = (COLOURS[1], COLOURS[0]), "os"
LARGE = (8.0, 4.6)
"""Width and height in inches of the picture of README.md."""
RULES = {"LR + DS, -2 errors": "default", "LR + DS": "by sign"}
"""Selection -> its name in the figure."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A difference with its interval, in shares of 1."""

    name: str
    group: int
    found: Difference


def bars(name: str, reference: str, group: int = 0) -> list[Bar]:
    """Every point of a study minus one of them, where both have three seeds or more."""
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
        Bar(name=f"{student}, {variant_name(bar.name)}", group=bar.group, found=bar.found)
        for group, (student, name) in enumerate(STUDENTS.items())
        for bar in bars(name, "KD", group)
    ]
    return forest(found, "test accuracy minus that of KD, points") if found else None


def sensitivity() -> str | None:
    """Test accuracy minus that of the default settings."""
    found = [
        Bar(name=variant_name(bar.name), group=bar.group, found=bar.found)
        for bar in bars("sensitivity", "base")
    ]
    return forest(found, "test accuracy minus that of the defaults, points") if found else None


def selection() -> str | None:
    """Test accuracy with label revision and selection minus label revision of all samples."""
    found = []
    for name, teacher in by_accuracy():
        frame = runs_of(name)
        every = of_point(frame, f"{teacher}LR")
        for group, (point, rule) in enumerate(RULES.items()):
            own = of_point(frame, f"{teacher}{point}")
            if len(own) >= FEWEST_SEEDS:
                shown, accuracy, student = named(name, teacher, own)
                label = f"{shown} ({accuracy} %), {student}, {rule}"
                found.append(Bar(name=label, group=group, found=difference(own, every)))
    x = "test accuracy with selection minus without, points"
    return forest(found, x) if found else None


def forest(rows: Sequence[Bar], x: str) -> str:
    """Draw a row for each difference: its mean, its 95 % interval, and the number of seeds."""
    with drawing(x, height=0.9 + 0.22 * len(rows)) as figure:
        figure.set_figwidth(LARGE[0])
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
        axes.set_xlabel(x, loc="right")
        axes.grid(visible=True, axis="x")
        return on_paper(svg(figure))


def teachers() -> str | None:
    """The picture of README.md: gain over no teacher against the accuracy of the teacher."""
    if not is_begun(TEACHERS_STUDY):
        return None
    frame = runs_of(TEACHERS_STUDY)
    if frame["teacher_accuracy_test"].nunique() < FEWEST_TEACHERS:
        return None
    x = "teacher's accuracy on the test images, %"
    with drawing(x, height=LARGE[1]) as figure, style.context({"font.size": 13}):
        figure.set_figwidth(LARGE[0])
        axes = figure.subplots()
        axes.axhline(0.0, color=INK, linewidth=1.2)
        axes.text(*NO_TEACHER, "no teacher", ha="right", va="top")
        caption = "ResNet-8 students, CIFAR-10 as JPEG files\n3 seeds, bars: 95 % intervals"
        axes.text(*CAPTION, caption, ha="right", va="bottom", fontsize=11)
        for number, (method, place) in enumerate(LABELS.items()):
            points = [point for point in set(frame["point"]) if method_of(point) == method]
            found = sorted(filter(None, (against_plain(frame, point) for point in points)))
            if found:
                _gains_of(axes, found, number)
                name = variant_name(method)
                axes.text(*place, name, color=LOOKS[number], weight="bold", fontsize=16)
        axes.set_yticks([-12, -8, -4, 0, 4])
        axes.set_xlabel(x)
        axes.set_ylabel("gain over no teacher, points")
        axes.grid(visible=True)
        return on_paper(svg(figure))


def _gains_of(axes: Axes, found: Sequence[tuple[float, ...]], number: int) -> None:
    """Draw a line with error bars through the gains of one method."""
    where, mean, below, above = (100 * np.array(column) for column in zip(*found, strict=True))
    axes.errorbar(
        where,
        mean,
        yerr=[below, above],
        color=LOOKS[number],
        marker=MARKERS[number],
        markersize=7,
        linewidth=2.5,
        elinewidth=1.5,
        capsize=4,
    )


def against_plain(frame: pd.DataFrame, point: str) -> tuple[float, float, float, float] | None:
    """The teacher's accuracy; the gain over no teacher, and how far its interval reaches.

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
            name=variant_name(point),
            x=of_point(frame, point)["seconds"].to_numpy(),
            y=of_point(frame, point)["held_out_accuracy"].to_numpy(),
        )
        for point in points_of("time", frame)
    ]
    chart = line_chart(curves, x="seconds of training", y="held-out accuracy", percent=True)
    return on_paper(chart)


def on_paper(chart: str) -> str:
    """Give a chart a white background of its own, for light and dark pages."""
    begin = chart.index(">", chart.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{chart[:begin]}{white}{chart[begin:]}".replace("currentColor", INK)


FIGURES: dict[str, Callable[[], str | None]] = {
    "gains": gains,
    "teachers": teachers,
    "selection": selection,
    "sensitivity": sensitivity,
    "time": time,
}


def draw() -> None:
    """Write the figures for which there are results."""
    for name, make in FIGURES.items():
        chart = make()
        if chart is not None:
            (FOLDER / f"study-{name}.svg").write_text(chart, encoding="utf-8")
