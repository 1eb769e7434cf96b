"""The table of students as a CSV file, for spreadsheets and scripts."""

import csv
import io
from collections.abc import Sequence
from statistics import fmean
from typing import Final

from pipeline.artefacts.run import RunResult
from pipeline.methods.paired_differences import Spread, paired_difference, spread
from stages.report.subjects import TEACHER, Subjects
from stages.report.teacher import TeacherFacts
from stages.report.verdict import mean_seconds
from stages.run_groups import Group

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins like this is a formula to a spreadsheet."""
_FIELDS: Final = (
    "test_accuracy",
    "held_out_accuracy_last",
    "held_out_accuracy_best",
    "held_out_accuracy_mean_of_last",
    "teacher_agreement_test",
    "test_loss",
    "test_calibration_error",
)


def as_csv(subjects: Subjects) -> str:
    """Every number of the tables, unrounded, with a line for each student and for the teacher."""
    out = io.StringIO()
    lines = [_line(group, subjects) for group in subjects.groups]
    if subjects.teacher is not None:
        lines.append(_teacher_line(subjects, subjects.teacher))
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _line(group: Group, subjects: Subjects) -> dict[str, object]:
    results = [run.result for run in group.runs]
    line: dict[str, object] = {"student": _plain(group.name), "seeds": len(results)}
    for field in _FIELDS:
        found = _spread(results, field)
        line |= {f"{field}_mean": found.mean, f"{field}_sd": found.std}
    for reference in subjects.compared:
        found_difference = paired_difference(
            group.by_seed("test_accuracy"), reference.by_seed("test_accuracy")
        )
        name = f"test_accuracy_minus {reference.name}"
        line |= {
            name: found_difference.mean,
            f"{name} low": found_difference.low,
            f"{name} high": found_difference.high,
        }
    return line | {
        "num_distilled": fmean(r.num_distilled for r in results),
        "num_parameters": results[0].num_parameters,
        "seconds": mean_seconds(group),
    }


def _spread(results: Sequence[RunResult], field: str) -> Spread:
    values = (getattr(result, field) for result in results)
    return spread(float(value) for value in values if value is not None)


def _teacher_line(subjects: Subjects, teacher: TeacherFacts) -> dict[str, object]:
    answers = subjects.answers
    line: dict[str, object] = {
        "student": TEACHER,
        "test_accuracy_mean": subjects.teacher_accuracy,
        "held_out_accuracy_last_mean": teacher.held_out_accuracy,
    }
    if answers is not None:
        line |= {
            "test_loss_mean": answers.loss,
            "test_calibration_error_mean": answers.calibration_error,
        }
    if teacher.size is not None:
        line["num_parameters"] = teacher.size.num_parameters
    return line


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
