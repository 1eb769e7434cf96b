"""Names of the study's variants as its pages print them; the stored results keep their own."""

from benchmarks.study.store import teacher_of_point

VARIANTS = {
    "plain": "no teacher",
    "KD": "KD",
    "LR": "label revision",
    "LR + DS, -2 errors": "label revision + selection",
    "LR + DS": "label revision + selection by sign",
    "LR + correct only": "label revision + correct only",
    "LR + random": "label revision + random",
    "LR + lowest EL2N": "label revision + lowest EL2N",
    "repaired, LR": "label revision (repaired teacher)",
    "repaired, LR + correct only": "label revision + correct only (repaired teacher)",
    "repaired, LR + DS": "label revision + best 85 % (repaired teacher)",
    "repaired, KD": "KD (repaired teacher)",
    "LR of wrong rows": "label revision, wrong samples only",
    "DS": "KD + selection by sign",
    "correct only": "KD + correct only",
    "swap": "swapped labels",
    "drop wrong": "wrong labels dropped",
    "plain, same views": "no teacher, same views",
    "base": "defaults",
    "weights 0.0 and 1.0": "weights 0 and 1",
    "best 0.25 by influence": "best 25 % by influence",
    "best 0.5 by influence": "best 50 % by influence",
    "best 0.7 by influence": "best 70 % by influence",
    "best 0.95 by influence": "best 95 % by influence",
    "views 1": "1 view",
    "views 2": "2 views",
    "views 4": "4 views",
    "views 8": "8 views",
    "LR, offline": "label revision, offline",
}
"""A point of a study -> its name for readers; a point that is not here has one name."""
PUBLIC_TEACHER = "public resnet56"
TEACHERS = {"": PUBLIC_TEACHER, "clean": "10 epochs"}
"""The teacher in the name of a point -> its name for readers."""


def variant_name(point: str) -> str:
    """Name of a point's variant; a point may be called `teacher: method`."""
    method = point.rpartition(": ")[2]
    return VARIANTS.get(method, method)


def teacher_name(point: str) -> str:
    """Name of a point's teacher."""
    teacher = teacher_of_point(point)
    return TEACHERS.get(teacher, teacher)
