"""The charts of accuracy, training and influence."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.artefacts.run import METRICS, Run
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.tables import flags
from pipeline.errors import ArtefactMismatch
from stages.report.noise import Gain, gain_over, mean_accuracy
from stages.report.page import Chart, Key, ReportSection
from stages.report.samples import SCORE
from stages.report.subjects import TEACHER, Subjects
from stages.report.svg_charts import (
    ALARM,
    QUIET,
    TEACHER_LOOK,
    Curve,
    Dots,
    Look,
    dot_chart,
    histogram_chart,
    line_chart,
)
from stages.report.verdict import NO_TEACHER
from stages.run_groups import Group


def accuracy_charts(subjects: Subjects) -> tuple[Chart, ...]:
    """Test accuracy of everyone, seed by seed, and the gain over no teacher."""
    if len(subjects.drawn) < 2 and subjects.teacher_accuracy is None:
        return ()
    charts = [_accuracies(subjects)]
    if subjects.untaught is not None and len(subjects.drawn) > 1:
        charts.append(_gains(subjects, subjects.untaught))
    return tuple(charts)


def _accuracies(subjects: Subjects) -> Chart:
    rows = [
        Dots(
            name=group.name,
            values=[100 * value for value in group.by_seed("test_accuracy").values()],
            mean=100 * mean_accuracy(group),
            look=subjects.looks[group.name],
        )
        for group in subjects.drawn
    ]
    if subjects.teacher_accuracy is not None:
        accuracy = 100 * subjects.teacher_accuracy
        rows.append(Dots(name=TEACHER, values=(), mean=accuracy, look=TEACHER_LOOK))
    return Chart(
        title="Test accuracy",
        svg=dot_chart(rows, x="test accuracy, %"),
        note="A dot for each seed, a bar for their mean."
        if subjects.has_several_seeds
        else "One seed each.",
    )


def _gains(subjects: Subjects, reference: Group) -> Chart:
    rows = [
        _gain_row(gain_over(group, reference, num_test=subjects.num_test), group, subjects)
        for group in subjects.drawn
        if group is not reference
    ]
    return Chart(
        title=f"Gain over {NO_TEACHER}",
        svg=dot_chart(rows, x=f"points above {NO_TEACHER}", zero=True),
        note="Mean difference in test accuracy, with its 95 % interval. An interval that crosses "
        "zero is within noise.",
    )


def _gain_row(gain: Gain, group: Group, subjects: Subjects) -> Dots:
    return Dots(
        name=group.name,
        values=(),
        mean=100 * gain.mean,
        low=100 * gain.low,
        high=100 * gain.high,
        look=subjects.looks[group.name],
    )


def training_section(subjects: Subjects) -> ReportSection:
    """Accuracy against time and epochs, and the loss."""
    metrics = {group.name: _metrics(group) for group in subjects.drawn}

    def lines(x: tuple[str, str], y: tuple[str, str], *, title: str, note: str) -> Chart:
        """One column of the metrics against another, each with its name for people."""
        curves = [
            _curve(own, x[0], y[0], name=name, look=subjects.looks[name])
            for name, own in metrics.items()
        ]
        percent = y[0].endswith("accuracy")
        drawn = line_chart(curves, x=x[1], y=y[1], percent=percent, on_page=True)
        return Chart(title=title, svg=drawn, note=note, legend=legend_of(subjects, metrics))

    mean = "; mean over seeds" if subjects.has_several_seeds else ""
    band = f"{mean}, with a band that spans them" if mean else ""
    accuracy = ("held_out_accuracy", "held-out accuracy")
    return ReportSection(
        title="Training",
        intro=left_out(subjects),
        charts=(
            lines(
                ("time", "seconds of training"),
                accuracy,
                title="Accuracy against time",
                note=f"After every epoch, without evaluation time{mean}.",
            ),
            lines(
                ("epoch", "epochs"),
                accuracy,
                title="Accuracy against epochs",
                note=f"One point for every epoch{band}.",
            ),
            lines(
                ("epoch", "epochs"),
                ("training_loss", "loss"),
                title="Training loss",
                note="Methods minimise different losses: compare shapes, not heights.",
            ),
        ),
    )


def legend_of(subjects: Subjects, names: Mapping[str, object] | Sequence[str]) -> tuple[Key, ...]:
    """Entries of the students that a chart shows."""
    return tuple(Key(name=name, colour=subjects.colour_of(name)) for name in names)


def influence_chart(table: SelectionTable) -> Chart | None:
    """Scores of the samples that the teacher gets right, and of those that it gets wrong."""
    frame = table.frame[table.frame[SCORE].notna()]
    if frame.empty:
        return None
    right = flags(frame["teacher_correct"])
    values = frame[SCORE].to_numpy(dtype=np.float64)
    parts = [
        ("teacher right", Look(colour=QUIET), values[right]),
        ("teacher wrong", Look(colour=ALARM), values[~right]),
    ]
    shown = [(name, look, own) for name, look, own in parts if len(own)]
    return Chart(
        title="Influence scores",
        svg=histogram_chart([(look, own) for _, look, own in shown], x=SCORE),
        note="Right of zero, the soft label is estimated to help. The extreme thousandths are "
        "drawn at the edges.",
        legend=tuple(Key(name=name, colour=look.colour) for name, look, _ in shown),
    )


def _metrics(group: Group) -> list[pd.DataFrame]:
    """Metrics of all runs, which have the same number of epochs.

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
    frame = pd.DataFrame(run.epochs())
    return frame.assign(time=frame["seconds"].cumsum())


def _curve(runs: Sequence[pd.DataFrame], x: str, y: str, *, name: str, look: Look) -> Curve:
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
        look=look,
    )


def left_out(subjects: Subjects) -> str:
    """The choice of students that charts show, where there are too many."""
    shown, total = len(subjects.drawn), len(subjects.groups)
    if shown == total:
        return ""
    return (
        f"Charts show {shown} of {total} students: the best, those that others are compared with, "
        "and those with the highest held-out accuracy."
    )
