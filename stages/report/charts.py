"""The charts of a report: what is drawn, of which runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.records import printable
from pipeline.artefacts.run import METRICS, Run, read_metrics
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.tables import flags
from pipeline.errors import ArtefactMismatch
from pipeline.methods.metrics import Reliability, reliability
from pipeline.runtime.progress import progress
from stages.report.page import Chart, ReportSection
from stages.report.samples import SCORE
from stages.report.svg_charts import (
    Curve,
    class_chart,
    histogram_chart,
    line_chart,
    reliability_chart,
)
from stages.report.teacher import Answers
from stages.run_groups import Group
from stages.training.predictions import open_predictions

MOST_GROUPS = 7
"""Lines that a chart has room for."""
_MOST_CLASSES = 30

TestFrames = dict[str, pd.DataFrame]
"""Predictions on the test images by group, of all its runs."""


def drawn(groups: Sequence[Group], compared: Sequence[Group]) -> list[Group]:
    """The groups that charts show: all, or those compared with and the best on held-out images."""
    if len(groups) <= MOST_GROUPS:
        return list(groups)

    def held_out(group: Group) -> float:
        return float(np.mean(list(group.by_seed("held_out_accuracy_mean_of_last").values())))

    others = sorted((g for g in groups if g not in compared), key=held_out, reverse=True)
    kept = [*compared, *others[: max(0, MOST_GROUPS - len(compared))]]
    return [group for group in groups if group in kept]


def on_test(groups: Sequence[Group], dataset: Dataset) -> TestFrames:
    """What every student says of the test images; made where a run has not kept it."""
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


def training_section(groups: Sequence[Group], *, num_groups: int) -> ReportSection:
    """Accuracy against time and epochs, and the loss."""
    metrics = {group.name: _metrics(group) for group in groups}
    return ReportSection(
        title="Training",
        intro=_left_out(len(groups), num_groups),
        charts=(
            _lines(
                metrics,
                ("time", "seconds of training"),
                ("held_out_accuracy", "held-out accuracy"),
                title="Accuracy against training time",
                note="Seconds of training alone, after every epoch; mean over seeds.",
            ),
            _lines(
                metrics,
                ("epoch", "epochs"),
                ("held_out_accuracy", "held-out accuracy"),
                title="Accuracy against epochs",
                note="Mean over seeds; the band reaches from the least to the greatest.",
            ),
            _lines(
                metrics,
                ("epoch", "epochs"),
                ("training_loss", "loss"),
                title="Training loss",
                note="Losses of different methods are sums of different terms.",
            ),
        ),
    )


def answers_section(
    frames: TestFrames,
    teacher: Answers | None,
    table: SelectionTable | None,
    class_names: Sequence[str],
    *,
    num_groups: int,
) -> ReportSection:
    """How sure everyone is, and of which classes."""
    charts = (_reliability(frames, teacher, table), _classes(frames, teacher, class_names))
    return ReportSection(title="Answers", intro=_left_out(len(frames), num_groups), charts=charts)


def influence_chart(table: SelectionTable) -> Chart | None:
    """The scores of the rows that the teacher gets right, and of those that it gets wrong."""
    frame = table.frame[table.frame[SCORE].notna()]
    if frame.empty:
        return None
    right = flags(frame["teacher_correct"])
    values = frame[SCORE].to_numpy(dtype=np.float64)
    parts = [("teacher right", values[right]), ("teacher wrong", values[~right])]
    return Chart(
        title="Influence",
        svg=histogram_chart([part for part in parts if len(part[1])], x=SCORE),
        note="Predicted change of the held-out loss if the sample lost its soft label: positive = "
        "distil it. The extreme thousandths are put at the edges.",
    )


def _lines(
    metrics: Mapping[str, Sequence[pd.DataFrame]],
    x: tuple[str, str],
    y: tuple[str, str],
    *,
    title: str,
    note: str,
) -> Chart:
    """One column of the metrics against another, each with its name for people."""
    curves = [_curve(name, own, x[0], y[0]) for name, own in metrics.items()]
    svg = line_chart(curves, x=x[1], y=y[1], percent=y[0].endswith("accuracy"))
    return Chart(title=title, svg=svg, note=note)


def _metrics(group: Group) -> list[pd.DataFrame]:
    """Of all runs, which have as many epochs.

    Raises:
        ArtefactMismatch: if one has fewer: the settings are the same.
    """
    found = [_of_run(run) for run in group.runs]
    most = max(map(len, found))
    for run, frame in zip(group.runs, found, strict=True):
        if len(frame) < most:
            raise ArtefactMismatch(
                f"{run.path / METRICS} has {len(frame)} epochs (expected {most}, as other seeds "
                f"of the same settings). Remove {run.path} and train again."
            )
    return found


def _of_run(run: Run) -> pd.DataFrame:
    frame = pd.DataFrame(read_metrics(run.path))
    return frame.assign(time=frame["seconds"].cumsum())


def _curve(name: str, runs: Sequence[pd.DataFrame], x: str, y: str) -> Curve:
    """The mean over runs, epoch by epoch."""
    values = np.stack([run[y].to_numpy(dtype=np.float64) for run in runs])
    places = np.stack([run[x].to_numpy(dtype=np.float64) for run in runs])
    several = len(runs) > 1
    return Curve(
        name=name,
        x=places.mean(axis=0),
        y=values.mean(axis=0),
        low=values.min(axis=0) if several else None,
        high=values.max(axis=0) if several else None,
    )


def _reliability(
    frames: TestFrames, teacher: Answers | None, table: SelectionTable | None
) -> Chart:
    found: list[tuple[str, Reliability]] = []
    if teacher is not None:
        correct = teacher.predicted == teacher.labels
        found.append(("teacher", reliability(teacher.confidence, correct)))
    elif table is not None:
        held_out = table.frame[flags(table.frame["held_out"]) & table.frame["p_max"].notna()]
        confidence = held_out["p_max"].to_numpy(dtype=np.float64)
        if len(held_out):
            correct = flags(held_out["teacher_correct"])
            found.append(("teacher, held out", reliability(confidence, correct)))
    for name, frame in frames.items():
        correct = (frame["predicted"] == frame["label"]).to_numpy()
        found.append((name, reliability(frame["confidence"].to_numpy(), correct)))
    return Chart(
        title="Calibration",
        svg=reliability_chart(found),
        note="On the test images, all seeds together. Below the diagonal is too sure. The error is "
        "the expected calibration error over 15 bins.",
    )


def _classes(frames: TestFrames, teacher: Answers | None, class_names: Sequence[str]) -> Chart:
    shares: list[tuple[str, NDArray[np.float64]]] = []
    num = len(class_names)
    if teacher is not None:
        right = teacher.predicted == teacher.labels
        shares.append(("teacher", _by_class(teacher.labels, right, num)))
    for name, frame in frames.items():
        right = (frame["predicted"] == frame["label"]).to_numpy(dtype=bool)
        shares.append((name, _by_class(frame["label"].to_numpy(), right, num)))
    classes, told = np.arange(num), "Every class on the test images, all seeds together."
    if num > _MOST_CLASSES:
        first, last = shares[0][1], shares[-1][1]
        classes = np.sort(np.argsort(-np.abs(last - first), kind="stable")[:_MOST_CLASSES])
        told = f"The {_MOST_CLASSES} of {num:,} classes that differ most between first and last."
    names = [printable(class_names[int(number)]) for number in classes]
    return Chart(
        title="Accuracy by class",
        svg=class_chart(names, [(name, values[classes]) for name, values in shares]),
        note=told,
    )


def _by_class(
    labels: NDArray[np.integer], right: NDArray[np.bool_], num_classes: int
) -> NDArray[np.float64]:
    counts = np.bincount(labels, minlength=num_classes)
    return np.bincount(labels, right, num_classes) / np.maximum(counts, 1)


def _left_out(drawn_groups: int, num_groups: int) -> str:
    if drawn_groups == num_groups:
        return ""
    return (
        f"{drawn_groups} of {num_groups} students are drawn: those that others are compared with, "
        "and the best on held-out images."
    )
