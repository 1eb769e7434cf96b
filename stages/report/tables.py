"""The table of students: accuracies over seeds, and differences between equal seeds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from pipeline.methods.paired_differences import paired_difference, spread
from stages.report.download import as_csv
from stages.report.noise import (
    Gain,
    binomial_gain,
    detectable_points,
    gain_over,
    mean_accuracy,
    seconds_text,
)
from stages.report.page import Cell, Folded, ReportSection, Row, Table
from stages.report.subjects import TEACHER, Subjects
from stages.report.teacher import TeacherFacts
from stages.report.verdict import mean_seconds, parameters_text
from stages.run_groups import Group
from stages.text import counted, percent, percent_over_seeds, percentage_points

_UNKNOWN = Cell(text="-")


def comparison_section(subjects: Subjects) -> ReportSection:
    """Accuracies over seeds, and differences between equal seeds."""
    table = Table(
        header=(
            "student",
            "test",
            *(f"test, minus {group.name}" for group in subjects.compared),
            f"held out, {_mean_of_last(subjects.groups)}",
            "agrees with teacher",
            "calibration error",
            "seeds",
        ),
        rows=[*(_row(group, subjects) for group in subjects.groups), *_teacher_rows(subjects)],
        note=_note(subjects),
        csv=as_csv(subjects),
    )
    best = {
        1: _best(subjects, "test_accuracy", max),
        2 + len(subjects.compared): _best(subjects, "held_out_accuracy_mean_of_last", max),
        4 + len(subjects.compared): _best(subjects, "test_calibration_error", min),
    }
    return ReportSection(
        title="Students",
        intro=" ".join(_intro(subjects)),
        tables=(_marked(table, best),),
        folded=(Folded(title="All measurements", tables=(_measurements(subjects),)),),
    )


def _intro(subjects: Subjects) -> Iterator[str]:
    """Explanation of the table, above it."""
    if subjects.has_several_seeds:
        yield "Accuracies in per cent: mean and standard deviation over seeds."
    else:
        yield "Accuracies in per cent, of one seed each."
    if len(subjects.groups) > 1 and subjects.compared:
        yield (
            "A difference is taken between runs of the same seed, with its 95 % interval in "
            "brackets."
        )
    if len(subjects.students) > 1:
        yield (
            "The best value of a column is bold. To choose a student, use the held-out column: the "
            "test images are for the final measurement."
        )


def _mean_of_last(groups: Sequence[Group]) -> str:
    epochs = {run.result.mean_of_last for group in groups for run in group.runs}
    return f"mean of last {epochs.pop()}" if len(epochs) == 1 else "mean of last"


def _note(subjects: Subjects) -> str:
    points = detectable_points(mean_accuracy(subjects.best), num_test=subjects.num_test)
    return (
        f"On {counted(subjects.num_test, 'test image')}, two single runs near the best accuracy "
        f"differ by up to {points:.1f} points by chance (binomial error, 95 %). A difference over "
        "several seeds is clear if its interval excludes zero."
    )


def _row(group: Group, subjects: Subjects) -> Row:
    results = [run.result for run in group.runs]
    cells = (
        _shares(group, "test_accuracy"),
        *(_difference(group, reference, subjects) for reference in subjects.compared),
        _shares(group, "held_out_accuracy_mean_of_last"),
        _over_seeds(r.teacher_agreement_test for r in results),
        Cell(text=f"{fmean(r.test_calibration_error for r in results):.3f}"),
        Cell(text=str(len(results))),
    )
    return Row(name=group.name, cells=cells, colour=subjects.colour_of(group.name))


def _teacher_rows(subjects: Subjects) -> Iterator[Row]:
    """The teacher, where its accuracy is known."""
    teacher, answers = subjects.teacher, subjects.answers
    if teacher is None:
        return
    cells = (
        _percent(subjects.teacher_accuracy),
        *(_teacher_difference(subjects, reference) for reference in subjects.compared),
        _percent(teacher.held_out_accuracy),
        _UNKNOWN,
        _UNKNOWN if answers is None else Cell(text=f"{answers.calibration_error:.3f}"),
        _UNKNOWN,
    )
    yield Row(name=TEACHER, cells=cells, colour=subjects.teacher_colour)


def _percent(share: float | None) -> Cell:
    return _UNKNOWN if share is None else Cell(text=f"{100 * share:.2f}")


def _teacher_difference(subjects: Subjects, reference: Group) -> Cell:
    if subjects.teacher_accuracy is None:
        return _UNKNOWN
    accuracy = mean_accuracy(reference)
    gain = binomial_gain(subjects.teacher_accuracy, accuracy, num_test=subjects.num_test)
    return replace(_judged(gain), text=percentage_points(gain.mean, gain.low, gain.high))


def _shares(group: Group, field: str) -> Cell:
    return _over_seeds(group.by_seed(field).values())


def _over_seeds(shares: Iterable[float | None]) -> Cell:
    found = spread(share for share in shares if share is not None)
    if found.mean is None:
        return _UNKNOWN
    return Cell(text=percent_over_seeds(found.mean, found.std, unit=""))


def _difference(group: Group, reference: Group, subjects: Subjects) -> Cell:
    if group is reference:
        return _UNKNOWN
    found = paired_difference(group.by_seed("test_accuracy"), reference.by_seed("test_accuracy"))
    if found.mean is None:
        return Cell(text="no common seed")
    gain = gain_over(group, reference, num_test=subjects.num_test)
    text = percentage_points(found.mean, found.low, found.high)
    if found.low is None:
        return replace(_judged(gain), text=f"{text} (one seed)")
    return replace(_judged(gain), text=text)


def _judged(gain: Gain) -> Cell:
    if not gain.is_clear:
        return Cell(text="", note=gain.word)
    return Cell(text="", note=gain.word, tone="good" if gain.mean > 0 else "bad")


def _best(
    subjects: Subjects, field: str, choose: Callable[[Iterable[float]], float]
) -> frozenset[str]:
    """Names of the students with the best mean; none where there is no other student."""
    if len(subjects.students) < 2:
        return frozenset()
    means = {g.name: fmean(g.by_seed(field).values()) for g in subjects.students}
    best = choose(means.values())
    return frozenset(name for name, mean in means.items() if mean == best)


def _marked(table: Table, best: dict[int, frozenset[str]]) -> Table:
    """The table with the best students of some columns, counted with the name as the first."""
    rows = [
        replace(
            row,
            cells=tuple(
                replace(cell, is_best=row.name in best.get(column, ()))
                for column, cell in enumerate(row.cells, start=1)
            ),
        )
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _measurements(subjects: Subjects) -> Table:
    """The other columns."""
    header = (
        "student",
        "held out, last",
        "held out, best",
        "test loss",
        "distilled",
        "parameters",
        "training",
    )
    rows = [_measured(group, subjects) for group in subjects.groups]
    if subjects.teacher is not None:
        rows.append(_teacher_measured(subjects, subjects.teacher))
    best = {
        1: _best(subjects, "held_out_accuracy_last", max),
        2: _best(subjects, "held_out_accuracy_best", max),
        3: _best(subjects, "test_loss", min),
    }
    return _marked(Table(header=header, rows=rows), best)


def _measured(group: Group, subjects: Subjects) -> Row:
    results = [run.result for run in group.runs]
    share = fmean(r.num_distilled / r.num_training_samples for r in results)
    cells = (
        _shares(group, "held_out_accuracy_last"),
        _shares(group, "held_out_accuracy_best"),
        Cell(text=f"{fmean(r.test_loss for r in results):.3f}"),
        Cell(text=percent(share, digits=1)),
        Cell(text=parameters_text(results[0].num_parameters)),
        Cell(text=seconds_text(mean_seconds(group))),
    )
    return Row(name=group.name, cells=cells, colour=subjects.colour_of(group.name))


def _teacher_measured(subjects: Subjects, teacher: TeacherFacts) -> Row:
    loss = None if subjects.answers is None else subjects.answers.loss
    size = teacher.size
    cells = (
        _percent(teacher.held_out_accuracy),
        _UNKNOWN,
        _UNKNOWN if loss is None else Cell(text=f"{loss:.3f}"),
        _UNKNOWN,
        _UNKNOWN if size is None else Cell(text=parameters_text(size.num_parameters)),
        _UNKNOWN,
    )
    return Row(name=TEACHER, cells=cells, colour=subjects.teacher_colour)
