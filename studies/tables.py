"""The tables of the study as markdown; accuracies in per cent."""

import pandas as pd

from pipeline.sweep_statistics import Difference, paired_difference, spread
from studies.store import runs_of, sweep_of

COMPARED = ("plain", "KD", "base")
"""Points that the others are compared with, where a study has them."""
HEADLINE = "headline"
"""The table of README.md: both students, the points that matter most."""
STUDENTS = {"ResNet-8": "ablation-resnet8", "ResNet-20": "ablation-resnet20"}
SHOWN = ("plain", "KD", "LR", "LR + DS", "repaired, LR")
FEWEST_SEEDS = 3
"""Fewer tell nothing of their spread."""


def table(name: str) -> str:
    """The results of one study; the teacher's accuracy where points are named after teachers."""
    frame = runs_of(name)
    order = points_of(name, frame)
    compared = [point for point in COMPARED if any(method_of(each) == point for each in order)]
    several = any(method_of(point) != point for point in order)
    header = [
        "student",
        *(["teacher, test"] if several else []),
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
        cells = [
            point,
            *([percent(own["teacher_accuracy_test"].head(1).dropna())] if several else []),
        ]
        cells += [str(len(own)), percent(own["held_out_accuracy_mean_of_last"])]
        cells.append(percent(own["test_accuracy"]))
        others = [reference_of(point, other) for other in compared]
        cells += ["" if other == point else gain(own, of_point(frame, other)) for other in others]
        cells.append(f"{own['test_calibration_error'].mean():.3f}")
        cells.append(percent(own["teacher_agreement_test"].dropna()))
        share = (own["num_distilled"] / own["num_training_samples"]).mean()
        cells.append(f"{100 * share:.1f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def points_of(name: str, frame: pd.DataFrame) -> list[str]:
    """The points of a study that are in ``frame``, in its order."""
    return [point for point in sweep_of(name).points if point in set(frame["point"])]


def method_of(point: str) -> str:
    """What a student learns by: a point may be called `teacher: method`."""
    return point.rpartition(": ")[2]


def reference_of(point: str, other: str) -> str:
    """The point that ``point`` is compared with: KD is that of the same teacher."""
    teacher = point.rpartition(": ")[0]
    return f"{teacher}: {other}" if teacher and other != "plain" else other


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
    found = difference(own, reference)
    if found.mean is None:
        return ""
    told = f"{100 * found.mean:+.2f}"
    if found.low is None or found.high is None:
        return told
    return f"{told} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def difference(own: pd.DataFrame, reference: pd.DataFrame) -> Difference:
    """In shares of 1."""
    return paired_difference(by_seed(own), by_seed(reference))


def by_seed(of_one_point: pd.DataFrame) -> dict[int, float]:
    """Test accuracies."""
    seeds = map(int, of_one_point.index)
    return dict(zip(seeds, of_one_point["test_accuracy"].tolist(), strict=True))


def headline() -> str:
    """Test accuracy of both students by what matters most, where there are enough seeds."""
    header = ["student", "learns by", "n", "test", *(f"minus {point}" for point in SHOWN[:2])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for student, name in STUDENTS.items():
        frame = runs_of(name)
        for point in SHOWN:
            own = of_point(frame, point)
            if len(own) < FEWEST_SEEDS:
                continue
            cells = [student, point, str(len(own)), percent(own["test_accuracy"])]
            others = {other: of_point(frame, other) for other in SHOWN[:2]}
            cells += ["" if other == point else gain(own, rows) for other, rows in others.items()]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
