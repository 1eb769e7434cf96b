"""The differences that the study's pages use: one variant minus another, by three measures."""

from collections.abc import Iterator
from functools import cache

import pandas as pd

from benchmarks.study.names import teacher_name, variant_name
from benchmarks.study.store import runs_of, sweep_of, teacher_of_point
from benchmarks.study.tables import STUDENTS, TEST, gain, of_point
from stages.text import markdown_table

DIFFERENCES = "differences: {subject}"
"""The name of the table on a page."""
MEASURES = {
    "test": TEST,
    "held out, mean of last": "held_out_accuracy_mean_of_last",
    "held out, last epoch": "held_out_accuracy_last",
}
"""Title of a column -> the field of a run."""

BASELINES = ("plain", "KD")
SELECTED = ("LR + DS, -2 errors", "LR + DS")
AGAINST = {
    "label revision": {
        "KD": ("plain",),
        "LR": (*BASELINES, "LR of wrong rows"),
        "swap": ("KD", "LR", "LR of wrong rows"),
        "drop wrong": ("KD", "LR", "LR of wrong rows"),
    },
    "repair": {
        "repaired, LR": (*BASELINES, "LR", "repaired, KD"),
        "repaired, KD": ("KD",),
    },
    "selection": {
        "LR + DS, -2 errors": (*BASELINES, "LR", "LR + DS"),
        "LR + DS": (*BASELINES, "LR", "LR + random", "LR + correct only", "DS"),
        "LR + correct only": ("LR",),
        "LR + random": ("LR",),
        "LR + lowest EL2N": ("LR",),
        "repaired, LR + correct only": (*BASELINES, "repaired, LR"),
        "repaired, LR + DS": (*BASELINES, "repaired, LR", "repaired, LR + correct only"),
        "DS": ("KD",),
        "correct only": ("KD",),
    },
    "views": {
        "plain, same views": ("plain",),
        "KD, clean view": ("KD",),
        "KD, 4 views": ("KD",),
    },
}
"""Subject -> variant -> variants that it is compared with, where there are runs of both."""
SETTINGS = "settings"
SUBJECTS = (*AGAINST, SETTINGS)
SETTINGS_STUDY, TEACHERS_STUDY = "sensitivity", "teachers"
Pair = tuple[str, str, str]
"""A study, a point of it, and the point that it is compared with."""


def differences(subject: str) -> str:
    """Every difference of a subject, as Markdown; in points, with 95 % intervals."""
    header = ["student", "teacher", "variant", "minus", "n", *MEASURES]
    read = cache(runs_of)
    rows = [row_of(pair, read(pair[0])) for pair in pairs(subject)]
    return markdown_table([header, *rows], aligned=False)


def pairs(subject: str) -> Iterator[Pair]:
    """The pairs of a subject that have runs under the same seeds."""
    read = cache(runs_of)
    for name, point, other in asked(subject):
        if point != other and len(common_seeds(read(name), point, other)):
            yield name, point, other


def asked(subject: str) -> Iterator[Pair]:
    """The pairs of a subject, also those without runs."""
    if subject == SETTINGS:
        yield from ((SETTINGS_STUDY, p, "base") for p in sweep_of(SETTINGS_STUDY).points)
        return
    for name in STUDENTS.values():
        yield from pairs_of(subject, name, teacher="")
    for teacher in dict.fromkeys(map(teacher_of_point, sweep_of(TEACHERS_STUDY).points)):
        if teacher:
            yield from pairs_of(subject, TEACHERS_STUDY, teacher=f"{teacher}: ")


def pairs_of(subject: str, name: str, teacher: str) -> Iterator[Pair]:
    """The pairs of a subject for one teacher of a study; `plain` has no teacher."""
    for point, others in AGAINST[subject].items():
        for other in others:
            yield name, f"{teacher}{point}", other if other == "plain" else f"{teacher}{other}"


def common_seeds(frame: pd.DataFrame, point: str, other: str) -> pd.Index:
    """The seeds under which both points ran."""
    return of_point(frame, point).index.intersection(of_point(frame, other).index)


def row_of(pair: Pair, frame: pd.DataFrame) -> list[str]:
    """Student, teacher, both variants, seeds, and the difference by every measure."""
    name, point, other = pair
    own, reference = of_point(frame, point), of_point(frame, other)
    num = str(len(common_seeds(frame, point, other)))
    found = [gain(own, reference, field) for field in MEASURES.values()]
    names = [variant_name(point), variant_name(other)]
    return [student_of(name), teacher_name(point), *names, num, *found]


def student_of(name: str) -> str:
    """The student of a study; those without one of their own are about a ResNet-8."""
    return next((student for student, own in STUDENTS.items() if own == name), "ResNet-8")
