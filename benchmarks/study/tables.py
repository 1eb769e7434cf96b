"""The tables of the study as Markdown; accuracies in per cent, variants by their readers' names."""

from collections.abc import Callable
from typing import TypeAlias

import pandas as pd

from benchmarks.study.names import teacher_name, variant_name
from benchmarks.study.store import (
    KEY,
    TIMED,
    epochs_of_study,
    is_begun,
    processor_of,
    replaced_runs_of,
    runs_of,
    studies,
    sweep_of,
    teacher_of_point,
)
from pipeline.methods.paired_differences import Difference, paired_difference, spread
from stages import text

Cell: TypeAlias = Callable[[str, pd.DataFrame], str]

TEST = "test_accuracy"
COMPARED = ("plain", "KD", "base")
"""Points that the others are compared with, where a study has them."""
PROCESSORS = "processors"
"""The table of runs that were made on two processors."""
MACHINES = "machines"
"""The table of runs that were made on another processor than most."""
STUDENTS = {"ResNet-8": "ablation-resnet8", "ResNet-20": "ablation-resnet20"}
STUDY_NAMES = {"sensitivity": "settings"} | {name: student for student, name in STUDENTS.items()}
"""A study -> its name for readers; others have one name."""
FEWEST_SEEDS = 3
"""Fewer seeds do not show their spread."""


def table(name: str) -> str:
    """The results of one study; the teacher's accuracy where points are named after teachers."""
    frame = runs_of(name)
    order = points_of(name, frame)
    columns = columns_of(name, frame, order)
    rows = [[cell(point, of_point(frame, point)) for cell in columns.values()] for point in order]
    return text.markdown_table([list(columns), *rows], aligned=False)


def columns_of(name: str, frame: pd.DataFrame, order: list[str]) -> dict[str, Cell]:
    """Columns of a study's table: title, and the cell of a point from its name and rows."""

    def minus(other: str) -> Cell:
        def cell(point: str, own: pd.DataFrame) -> str:
            than = reference_of(point, other)
            return "" if than == point else gain(own, of_point(frame, than))

        return cell

    def mean_of(field: str) -> Cell:
        return lambda _, own: percent(own[field].dropna())

    of_teacher: dict[str, Cell] = {
        "teacher": lambda point, _: teacher_name(point) if teacher_of_point(point) else "",
        "teacher, test": lambda _, own: percent(own["teacher_accuracy_test"].head(1).dropna()),
    }
    timed: dict[str, Cell] = {"seconds": lambda point, own: seconds(name, point, own)}
    methods = [method_of(point) for point in order]
    return {
        **(of_teacher if methods != order else {}),
        "variant": lambda point, _: variant_name(point),
        "n": lambda _, own: str(len(own)),
        **(timed if name == TIMED else {}),
        "held out, mean of last": mean_of("held_out_accuracy_mean_of_last"),
        "test": mean_of(TEST),
        **{
            f"test, minus {variant_name(other)}": minus(other)
            for other in COMPARED
            if other in methods
        },
        "calibration error": lambda _, own: f"{own['test_calibration_error'].mean():.3f}",
        "agrees with teacher": agreement,
        "distilled": lambda _, own: percent_distilled(own),
    }


def agreement(_: str, own: pd.DataFrame) -> str:
    """Agreement with the study's teacher; empty where some seeds have no value."""
    found = own["teacher_agreement_test"]
    return "" if found.isna().any() else percent(found)


def seconds(name: str, point: str, own: pd.DataFrame) -> str:
    """Seconds of training, to the end of the last epoch."""
    epochs = of_point(epochs_of_study(name), point)
    return f"{epochs['seconds'].groupby(level='seed').max()[own.index].mean():.0f}"


def percent_distilled(own: pd.DataFrame) -> str:
    share = (own["num_distilled"] / own["num_training_samples"]).mean()
    return text.percent(share, digits=1)


def points_of(name: str, frame: pd.DataFrame) -> list[str]:
    """The points of a study that are in ``frame``, in its order."""
    return [point for point in sweep_of(name).points if point in set(frame["point"])]


def method_of(point: str) -> str:
    """The method in the name of a point, which may be `teacher: method`."""
    return point.rpartition(": ")[2]


def reference_of(point: str, other: str) -> str:
    """The point that ``point`` is compared with: KD is that of the same teacher."""
    teacher = teacher_of_point(point)
    return f"{teacher}: {other}" if teacher and other != "plain" else other


def of_point(frame: pd.DataFrame, point: str) -> pd.DataFrame:
    """The rows of a point by seed."""
    return frame[frame["point"] == point].set_index("seed")


def percent(shares: pd.Series) -> str:
    found = spread(shares)
    return text.percent_over_seeds(found.mean, found.std, unit="", unknown="")


def gain(own: pd.DataFrame, reference: pd.DataFrame, field: str = TEST) -> str:
    """Point minus another over the seeds that both have, with its 95 % interval."""
    found = difference(own, reference, field)
    return "" if found.mean is None else text.percentage_points(found.mean, found.low, found.high)


def difference(own: pd.DataFrame, reference: pd.DataFrame, field: str = TEST) -> Difference:
    """In shares of 1."""
    return paired_difference(by_seed(own, field), by_seed(reference, field))


def by_seed(of_one_point: pd.DataFrame, field: str) -> dict[int, float]:
    seeds = map(int, of_one_point.index)
    return dict(zip(seeds, of_one_point[field].tolist(), strict=True))


def processors() -> str:
    """Differences between runs that were repeated on another kind of processor, in points."""
    rows = []
    for name in filter(is_begun, studies()):
        pairs = replaced_runs_of(name).merge(runs_of(name), on=KEY, suffixes=("", " again"))
        for devices, own in pairs.groupby(["device", "device again"]):
            fields = (TEST, "held_out_accuracy_mean_of_last")
            shifts = [percent(own[f"{field} again"] - own[field]) for field in fields]
            title = STUDY_NAMES.get(name, name)
            rows.append([title, *map(processor_of, devices), str(len(own)), *shifts])
    header = ["study", "first processor", "second", "n", "test", "held out, mean of last"]
    return text.markdown_table([header, *rows], aligned=False)


def machines() -> str:
    """The variants of each study that ran on another processor than most runs."""
    names = [name for name in studies() if is_begun(name) and name != TIMED]
    frames = {name: runs_of(name) for name in names}
    usual = pd.concat(frames.values())["device"].mode()[0]
    rows = []
    for name, frame in frames.items():
        for device, own in frame[frame["device"] != usual].groupby("device"):
            points = points_of(name, own)
            teachers = ", ".join(dict.fromkeys(map(teacher_name, points)))
            shown = "; ".join(map(variant_name, points))
            title = STUDY_NAMES.get(name, name)
            rows.append([title, teachers, str(device), str(len(own)), shown])
    header = ["study", "teacher", "processor", "runs", "variants"]
    return text.markdown_table([header, *rows], aligned=False)
