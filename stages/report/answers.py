"""Predictions on the test images: confusion, classes, and calibration of everyone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.records import printable
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.tables import flags
from pipeline.methods.metrics import Reliability, reliability
from pipeline.runtime.progress import progress
from stages.report.charts import left_out
from stages.report.confusion import (
    MOST_CLASSES,
    Confusions,
    confusion_chart,
    confusion_list,
    confusions,
)
from stages.report.noise import binomial_half_width
from stages.report.page import Chart, Key, ReportSection
from stages.report.subjects import TEACHER, Subjects
from stages.report.svg_charts import (
    TEACHER_LOOK,
    ClassMarks,
    Look,
    class_chart,
    reliability_chart,
)
from stages.run_groups import Group
from stages.training.predictions import open_predictions

FEWEST_IN_BIN: Final = 10
"""Samples that a bin of confidence needs to be drawn."""
_MOST_CLASSES: Final = 30

TestFrames = dict[str, pd.DataFrame]
"""Predictions on the test images by group, all its runs together."""


@dataclass(frozen=True, kw_only=True)
class _ByClass:
    """Accuracy and number of images of every class, (C,)."""

    name: str
    accuracy: NDArray[np.float64]
    num_images: NDArray[np.int64]
    look: Look


def on_test(groups: Sequence[Group], dataset: Dataset) -> TestFrames:
    """Predictions of every student on the test images, computed where a run has none."""
    total = sum(len(group.runs) for group in groups)
    frames = {}
    with progress("read predictions", total=total, unit="runs") as bar:
        for group in groups:
            parts = []
            for run in group.runs:
                parts.append(open_predictions(run, dataset).of("test"))
                bar.advance(1)
            frames[group.name] = pd.concat(parts)
    return frames


def answers_section(frames: TestFrames, subjects: Subjects) -> ReportSection:
    """Accuracy by class, and confusions."""
    matrices = _confusions(frames, subjects)
    names = [printable(name) for name in subjects.class_names]
    shown = confusion_chart if len(names) <= MOST_CLASSES else confusion_list
    charts = [_classes(frames, subjects), *(shown(found, names) for found in matrices)]
    return ReportSection(
        title="Predictions",
        intro=" ".join(
            filter(None, ("On the test images, all seeds together.", left_out(subjects)))
        ),
        charts=tuple(charts),
    )


def _confusions(frames: TestFrames, subjects: Subjects) -> Iterator[Confusions]:
    """Those of the best student and of the teacher."""
    num, best = len(subjects.class_names), subjects.best
    frame = frames[best.name]
    labels, predicted = (
        frame[column].to_numpy(dtype=np.int64) for column in ("label", "predicted")
    )
    yield confusions(labels, predicted, num_classes=num, name=best.name)
    if subjects.answers is not None:
        answers = subjects.answers
        yield confusions(answers.labels, answers.predicted, num_classes=num, name=TEACHER)


def calibration_chart(
    frames: TestFrames, subjects: Subjects, table: SelectionTable | None
) -> Chart | None:
    """Accuracy against confidence; None where there are too few images.

    The teacher is that of the test images, or of the held-out ones where it saw no others.
    """
    found: list[tuple[str, Look, Reliability, int]] = []
    answers = subjects.answers
    if answers is not None:
        bins = reliability(answers.confidence, answers.correct)
        found.append((TEACHER, TEACHER_LOOK, bins, 1))
    elif table is not None:
        held_out = table.frame[flags(table.frame["held_out"]) & table.frame["p_max"].notna()]
        confidence = held_out["p_max"].to_numpy(dtype=np.float64)
        if len(held_out):
            bins = reliability(confidence, flags(held_out["teacher_correct"]))
            found.append((f"{TEACHER}, held out", TEACHER_LOOK, bins, 1))
    seeds = {group.name: len(group.runs) for group in subjects.drawn}
    for name, frame in frames.items():
        correct = (frame["predicted"] == frame["label"]).to_numpy()
        bins = reliability(frame["confidence"].to_numpy(), correct)
        found.append((name, subjects.looks[name], bins, seeds[name]))
    svg = reliability_chart(
        [(look, bins) for _, look, bins, _ in found],
        fewest=[FEWEST_IN_BIN * runs for *_, runs in found],
    )
    if svg is None:
        return None
    return Chart(
        title="Calibration",
        svg=svg,
        note="Below the diagonal, a network is too confident. The legend gives the expected "
        f"calibration error. Bins with fewer than {FEWEST_IN_BIN} images are not drawn.",
        legend=tuple(
            Key(name=f"{name}: {100 * bins.error:.1f} %", colour=look.colour)
            for name, look, bins, _ in found
        ),
    )


def _classes(frames: TestFrames, subjects: Subjects) -> Chart:
    """Accuracy of every class minus that of the reference, sorted by the best student's."""
    first, *others = sorted(_by_class(frames, subjects), key=lambda one: _rank(one, subjects))
    reference = others[0] if others else None
    base = np.zeros_like(first.accuracy) if reference is None else reference.accuracy
    order, note = _order(first.accuracy - base, first.num_images)
    half = None
    if reference is not None:
        half = binomial_half_width(first.accuracy, base, first.num_images)
        note += " Lines are 95 % intervals by the binomial error of the class's images."
    marks = [first, *others[1:]]
    chart = class_chart(
        [printable(subjects.class_names[int(number)]) for number in order],
        [
            ClassMarks(
                look=one.look,
                values=100 * (one.accuracy - base)[order],
                half=100 * half[order] if half is not None and one is first else None,
            )
            for one in marks
        ],
        x="accuracy, %" if reference is None else "difference, points",
    )
    return Chart(
        title="Accuracy by class" + (f", minus {reference.name}" if reference else ""),
        svg=chart,
        note=note,
        legend=tuple(Key(name=one.name, colour=one.look.colour) for one in marks),
    )


def _order(
    values: NDArray[np.float64], num_images: NDArray[np.int64]
) -> tuple[NDArray[np.int64], str]:
    """Classes that have test images, from the largest value; of many, those at both ends."""
    seen = np.flatnonzero(num_images > 0)
    order = seen[np.argsort(-values[seen], kind="stable")]
    if len(order) <= _MOST_CLASSES:
        return order, "Sorted by the first entry of the legend."
    half = _MOST_CLASSES // 2
    ends = np.concatenate([order[:half], order[-half:]])
    return ends, f"The {half} largest and the {half} smallest values of {len(order):,} classes."


def _rank(one: _ByClass, subjects: Subjects) -> int:
    """The best student first, then the one that it is compared with."""
    wanted = [(subjects.best_taught or subjects.best).name]
    if subjects.untaught is not None:
        wanted.append(subjects.untaught.name)
    wanted += [*(group.name for group in subjects.compared), TEACHER, subjects.best.name]
    return wanted.index(one.name) if one.name in wanted else len(wanted)


def _by_class(frames: TestFrames, subjects: Subjects) -> Iterator[_ByClass]:
    num = len(subjects.class_names)
    for name, frame in frames.items():
        labels = frame["label"].to_numpy(dtype=np.int64)
        right = (frame["predicted"] == frame["label"]).to_numpy(dtype=bool)
        runs = next(len(group.runs) for group in subjects.drawn if group.name == name)
        accuracy, counts = _shares(labels, right, num)
        yield _ByClass(
            name=name,
            accuracy=accuracy,
            num_images=counts // runs,
            look=subjects.looks[name],
        )
    if subjects.answers is not None:
        accuracy, counts = _shares(subjects.answers.labels, subjects.answers.correct, num)
        yield _ByClass(name=TEACHER, accuracy=accuracy, num_images=counts, look=TEACHER_LOOK)


def _shares(
    labels: NDArray[np.int64], right: NDArray[np.bool_], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    counts = np.bincount(labels, minlength=num_classes)
    return np.bincount(labels, right, num_classes) / np.maximum(counts, 1), counts
