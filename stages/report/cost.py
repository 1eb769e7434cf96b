"""The cost of a report's students, and of the cache that they share."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from stages.report.noise import TOO_SHORT, is_measurable, rate_text, seconds_text
from stages.report.page import Cell, ReportSection, Row, Table
from stages.report.subjects import Subjects
from stages.report.teacher import TeacherFacts
from stages.report.verdict import mean_seconds
from stages.run_groups import Group
from stages.text import counted


def cost_section(subjects: Subjects) -> ReportSection:
    """The cost of the cache, paid once, and the cost of each student."""
    groups, teacher = subjects.groups, subjects.teacher
    forwards = [run.result.cost.teacher_forwards_saved for group in groups for run in group.runs]
    facts = [("teacher forwards saved", f"{sum(forwards):,}")]
    if teacher is not None:
        facts += list(_teacher_facts(teacher, forwards))
    return ReportSection(
        title="Cost",
        intro=""
        if teacher is None
        else "The teacher runs once for all students. From the break-even number of students on, "
        "that costs less than a teacher in every training loop.",
        facts=tuple(facts),
        tables=(
            Table(
                header=(
                    "student",
                    "runs",
                    "training",
                    "images/s",
                    "teacher forwards saved",
                    "device",
                ),
                rows=[_cost_row(group, subjects) for group in groups],
                note="Times include the effect of whatever else ran on the machine.",
            ),
        ),
    )


def _teacher_facts(teacher: TeacherFacts, forwards: Sequence[int]) -> Iterator[tuple[str, str]]:
    seconds = teacher.cache.summary.seconds
    measurable = is_measurable(seconds)
    rate = rate_text(teacher.num_forwards, seconds)
    yield "teacher's pass", f"{seconds_text(seconds)}, {rate} images/s" if measurable else TOO_SHORT
    yield "teacher's cache", f"{teacher.cache.num_bytes / 1e6:,.1f} MB"
    longest = max(forwards, default=0)
    if longest:
        saved = longest / teacher.images_per_second
        added = f"{seconds_text(saved)} per student" if measurable else TOO_SHORT
        yield "a teacher in the loop would add", added
        students = counted(math.ceil(teacher.num_forwards / longest), "student")
        yield "break-even", students


def _cost_row(group: Group, subjects: Subjects) -> Row:
    costs = [run.result.cost for run in group.runs]
    seconds = mean_seconds(group)
    rate = f"{fmean(cost.training_images_per_second for cost in costs):,.0f}"
    cells = (
        Cell(text=str(len(costs))),
        Cell(text=seconds_text(seconds)),
        Cell(text=rate if is_measurable(seconds) else TOO_SHORT),
        Cell(text=f"{sum(cost.teacher_forwards_saved for cost in costs):,}"),
        Cell(text=", ".join(sorted({cost.device for cost in costs}))),
    )
    return Row(name=group.name, cells=cells, colour=subjects.colour_of(group.name))
