"""Small tables that answer one question each: what the study's pages and README.md show first."""

from collections.abc import Iterator

import pandas as pd

from benchmarks.study.differences import MEASURES, TEACHERS_STUDY, student_of
from benchmarks.study.names import teacher_name, variant_name
from benchmarks.study.store import runs_of, teacher_of_point
from benchmarks.study.tables import (
    STUDENTS,
    difference,
    gain,
    of_point,
    percent,
    percent_distilled,
)
from pipeline.methods.paired_differences import Difference
from stages.text import markdown_table

GAINS = "gains"
"""The table of README.md: gains over no teacher, in points."""
BY_TEACHER = "teachers in short"
SELECTION = "selection in short"
REPAIR = "repair in short"
GAINING = ("KD", "LR", "LR + DS, -2 errors", "repaired, LR")
HELD_OUT = "held_out_accuracy_mean_of_last"
HEADS = {
    "": (87.3, 90.7),
    "20 epochs: ": (84.9, 85.4),
    "clean: ": (82.0, 82.1),
    "40 % wrong labels: ": (71.5, 72.5),
    "3 epochs: ": (69.3, 70.4),
}
"""Teacher -> accuracy of its own and of its repaired head, in per cent, on the half of the held-out
images that did not choose the L2 weight, as `select --repair head` printed it: no run stores it."""


def gains() -> str:
    """Gains of both students over no teacher; bold where they are clearly above KD."""
    header = ["gain over no teacher, points", *STUDENTS]
    rows = [
        [variant_name(point), *(gain_cell(name, point) for name in STUDENTS.values())]
        for point in GAINING
    ]
    return markdown_table([header, *rows], aligned=False)


def gain_cell(name: str, point: str) -> str:
    """Mean and half of the 95 % interval."""
    frame = runs_of(name)
    own = of_point(frame, point)
    found = difference(own, of_point(frame, "plain"))
    shown = plus_minus(found)
    if point == "KD":
        return shown
    over_kd = difference(own, of_point(frame, "KD"))
    return f"**{shown}**" if over_kd.low is not None and over_kd.low > 0 else shown


def plus_minus(found: Difference) -> str:
    """A difference in points to one decimal, with half of its interval."""
    if found.mean is None or found.high is None:
        return ""
    return f"{100 * found.mean:+.1f} ± {100 * (found.high - found.mean):.1f}"


def teachers_in_short() -> str:
    """Gains over no teacher by KD and by label revision, for every teacher."""
    header = ["teacher", "its test accuracy", "student", "n", "KD", "label revision"]
    rows = []
    for name, teacher in by_accuracy():
        frame = runs_of(name)
        kd, revised = (of_point(frame, f"{teacher}{point}") for point in ("KD", "LR"))
        others = [of_point(frame, "plain")] * 2 + [kd]
        found = [
            gain(own, other) for own, other in zip((kd, revised, revised), others, strict=True)
        ]
        rows.append([*named(name, teacher, revised), str(len(revised)), *found])
    return markdown_table([[*header, "label revision minus KD"], *rows], aligned=False)


def selection_in_short() -> str:
    """Selection by default and by sign minus distilling all samples, for every teacher."""
    header = ["teacher", "its test accuracy", "student", "n", "rule", "kept"]
    rows = []
    for name, teacher in by_accuracy():
        frame = runs_of(name)
        every = of_point(frame, f"{teacher}LR")
        for rule, point in (("default", "LR + DS, -2 errors"), ("sign", "LR + DS")):
            own = of_point(frame, f"{teacher}{point}")
            if len(own):
                found = [gain(own, every), gain(own, every, HELD_OUT)]
                cells = [str(len(own)), rule, percent_distilled(own), *found]
                rows.append([*named(name, teacher, own), *cells])
    return markdown_table([[*header, "test", "held out"], *rows], aligned=False)


def repair_in_short() -> str:
    """Heads before and after repair, and what the repair changes for students of revised labels."""
    header = ["teacher", "its test accuracy", "student", "n", "own head", "repaired head"]
    rows = []
    for name, teacher in by_accuracy():
        frame = runs_of(name)
        own, every = (of_point(frame, f"{teacher}{point}") for point in ("repaired, LR", "LR"))
        if len(own):
            heads = [f"{accuracy:.1f}" for accuracy in HEADS[teacher]]
            found = [gain(own, every, field) for field in MEASURES.values()]
            rows.append([*named(name, teacher, own), str(len(own)), *heads, *found])
    return markdown_table([[*header, *MEASURES], *rows], aligned=False)


def by_accuracy() -> Iterator[tuple[str, str]]:
    """Study and beginning of a point's name: the public teacher, then our own, best first."""
    yield from ((name, "") for name in STUDENTS.values())
    frame = runs_of(TEACHERS_STUDY)
    accuracy = frame.groupby(frame["point"].map(teacher_of_point))["teacher_accuracy_test"].max()
    order = accuracy.dropna().sort_values(ascending=False).index
    yield from ((TEACHERS_STUDY, f"{teacher}: ") for teacher in order)


def named(name: str, teacher: str, own: pd.DataFrame) -> list[str]:
    """Teacher, its accuracy on the test images, student."""
    accuracy = percent(own["teacher_accuracy_test"].head(1))
    return [teacher_name(f"{teacher}KD"), accuracy, student_of(name)]
