"""The differences that the study's pages speak of: one point minus another, by three measures."""

from collections.abc import Iterator
from functools import cache

from benchmarks.study.store import runs_of, sweep_of, teacher_of_point
from benchmarks.study.tables import STUDENTS, TEST, gain, of_point
from stages.text import markdown_table

DIFFERENCES = "differences"
"""The name of the table on a page."""
MEASURES = {
    "test": TEST,
    "held out, mean of last": "held_out_accuracy_mean_of_last",
    "held out, last epoch": "held_out_accuracy_last",
}
"""Title of a column -> the field of a run."""

BASELINES = ("plain", "KD")
OF_BOTH_STUDENTS = ("LR", "LR + DS", "repaired, LR")
AGAINST = {
    "LR + DS": ("LR", "KD", "LR + random", "LR + correct only", "DS"),
    "LR + DS, -2 errors": ("LR", *BASELINES, "LR + DS"),
    "LR + correct only": ("LR",),
    "LR + random": ("LR",),
    "LR + lowest EL2N": ("LR",),
    "repaired, LR": ("LR", "repaired, KD"),
    "repaired, LR + correct only": ("repaired, LR", *BASELINES),
    "repaired, LR + DS": ("repaired, LR", "repaired, LR + correct only", *BASELINES),
    "repaired, KD": ("KD",),
    "LR": ("LR of wrong rows",),
    "DS": ("KD",),
    "correct only": ("KD",),
    "swap": ("KD", "LR", "LR of wrong rows"),
    "drop wrong": ("KD", "LR", "LR of wrong rows"),
    "plain, same views": ("plain",),
    "KD, clean view": ("KD",),
    "KD, 4 views": ("KD",),
}
"""What is asked of a method, for one student and one teacher, where there are runs of both."""


def differences() -> str:
    """Every difference that is asked for, as markdown; in points, with 95 % intervals."""
    rows, read = [], cache(runs_of)
    for name, point, other in dict.fromkeys(asked()):
        frame = read(name)
        own, reference = of_point(frame, point), of_point(frame, other)
        common = len(own.index.intersection(reference.index))
        if common and point != other:
            told = [gain(own, reference, field) for field in MEASURES.values()]
            rows.append([called(name), point, other, str(common), *told])
    return markdown_table([["study", "student", "minus", "n", *MEASURES], *rows], aligned=False)


def asked() -> Iterator[tuple[str, str, str]]:
    """Study, a point of it, and the point that it is compared with."""
    for name in STUDENTS.values():
        yield name, "KD", "plain"
        yield from ((name, point, other) for point in OF_BOTH_STUDENTS for other in BASELINES)
        yield from pairs_of(name, teacher="")
    yield from (("sensitivity", point, "base") for point in sweep_of("sensitivity").points)
    teachers = dict.fromkeys(map(teacher_of_point, sweep_of("teachers").points))
    for teacher in filter(None, teachers):
        yield from (("teachers", f"{teacher}: {point}", "plain") for point in ("KD", "LR"))
        yield "teachers", f"{teacher}: LR", f"{teacher}: KD"
        yield from pairs_of("teachers", teacher=f"{teacher}: ")


def pairs_of(name: str, teacher: str) -> Iterator[tuple[str, str, str]]:
    """`AGAINST` for one teacher of a study, also where it has no such points."""
    for point, others in AGAINST.items():
        yield from ((name, f"{teacher}{point}", f"{teacher}{other}") for other in others)


def called(name: str) -> str:
    """A study as its page calls it: by the student, where it has one of its own."""
    return next((student for student, own in STUDENTS.items() if own == name), name)
