"""The numbers of a report: who is how good, by how much, and what it cost."""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from pipeline.artefacts.run import Run
from pipeline.methods.paired_differences import paired_difference, spread
from stages.report.page import ReportSection, Table
from stages.report.teacher import TeacherFacts
from stages.run_groups import Group, soft_labels_of
from stages.text import duration, percent, percent_over_seeds, percentage_points

_ACCURACIES = {
    "test": "test_accuracy",
    "held out, last": "held_out_accuracy_last",
    "best": "held_out_accuracy_best",
    "mean of last": "held_out_accuracy_mean_of_last",
}


def references(groups: Sequence[Group], wanted: Sequence[str]) -> list[Group]:
    """What the others are compared with: the wanted ones, or plain training and distillation
    without revision and selection, as far as they are there.

    Raises:
        KeyError: if there is none of that name.
    """
    if wanted:
        by_name = {group.name: group for group in groups}
        return [by_name[name] for name in wanted]
    found = [next((group for group in groups if group.is_plain), None)]
    found.append(next((group for group in groups if _is_vanilla(group)), None))
    return [group for group in found if group is not None]


def _is_vanilla(group: Group) -> bool:
    run = group.runs[0]
    labels = soft_labels_of(run)
    is_all = run.result.num_distilled == run.result.num_training_samples
    return (
        labels is not None
        and labels.identity.revision == "none"
        and labels.identity.repair is None
        and is_all
        and not run.result.online
    )


def comparison_section(groups: Sequence[Group], compared: Sequence[Group]) -> ReportSection:
    """Accuracies over seeds, and differences between equal seeds."""
    epochs = {run.result.mean_of_last for group in groups for run in group.runs}
    last = f" {epochs.pop()}" if len(epochs) == 1 else ""
    header = (
        "student",
        "n",
        *(f"{name}{last}" if name == "mean of last" else name for name in _ACCURACIES),
        *(f"test, minus {group.name}" for group in compared),
        "agrees with teacher",
        "test loss",
        "calibration error",
        "distilled",
    )
    return ReportSection(
        title="Students",
        intro="Accuracies in per cent, mean and standard deviation over seeds. The test images are "
        "opened once, after the last epoch; choose by the held-out columns. A difference is taken "
        "between runs of the same seed; in brackets its 95 % interval by Student's t.",
        tables=(
            Table(
                header=header,
                rows=[_row(group, compared) for group in groups],
                note="Differences between single runs under 0.3 points are noise: what repeated "
                "trainings differ by is in the column of the mean.",
            ),
        ),
    )


def _row(group: Group, compared: Sequence[Group]) -> tuple[str, ...]:
    results = [run.result for run in group.runs]
    agreements = [r.teacher_agreement_test for r in results if r.teacher_agreement_test is not None]
    return (
        group.name,
        str(len(results)),
        *(_percent(group.by_seed(field).values()) for field in _ACCURACIES.values()),
        *(_difference(group, reference) for reference in compared),
        _percent(agreements),
        f"{fmean(r.test_loss for r in results):.3f}",
        f"{fmean(r.test_calibration_error for r in results):.3f}",
        percent(fmean(r.num_distilled / r.num_training_samples for r in results), digits=1),
    )


def _percent(shares: Iterable[float]) -> str:
    found = spread(shares)
    return percent_over_seeds(found.mean, found.std, unit="", unknown="not known")


def _difference(group: Group, reference: Group) -> str:
    if group is reference:
        return "-"
    found = paired_difference(group.by_seed("test_accuracy"), reference.by_seed("test_accuracy"))
    if found.mean is None:
        return "no common seed"
    told = percentage_points(found.mean, found.low, found.high)
    return told if found.low is not None else f"{told} (one seed)"


def cost_section(groups: Sequence[Group], teacher: TeacherFacts | None) -> ReportSection:
    """What was paid for the cache once, and what each student did not pay."""
    forwards = [run.result.cost.teacher_forwards_saved for group in groups for run in group.runs]
    facts = [("teacher forwards saved", f"{sum(forwards):,}")]
    if teacher is not None:
        facts += list(_teacher_facts(teacher, forwards))
    return ReportSection(
        title="Cost",
        intro=""
        if teacher is None
        else "The teacher runs once for all students. Break-even is the number of students of "
        "this length from which its pass costs less than the teacher in every training loop.",
        facts=tuple(facts),
        tables=(
            Table(
                header=("student", "n", "seconds", "images/s", "teacher forwards saved", "device"),
                rows=[_cost_row(group) for group in groups],
                note="Times are those of the runs, whatever else the machine did.",
            ),
        ),
    )


def _teacher_facts(teacher: TeacherFacts, forwards: Sequence[int]) -> Iterator[tuple[str, str]]:
    seconds, rate = teacher.cache.summary.seconds, teacher.images_per_second
    yield "teacher's pass", f"{duration(seconds)}, {rate:,.0f} images/s"
    yield "teacher's cache", f"{teacher.cache.num_bytes / 1e6:,.1f} MB"
    longest = max(forwards, default=0)
    if longest:
        saved = longest / rate
        yield "the teacher in the loop would add", f"{duration(saved)} per student"
        yield "break-even", f"{math.ceil(seconds / saved)} students"


def _cost_row(group: Group) -> tuple[str, ...]:
    costs = [run.result.cost for run in group.runs]
    return (
        group.name,
        str(len(costs)),
        f"{fmean(cost.seconds for cost in costs):,.0f}",
        f"{fmean(cost.training_images_per_second for cost in costs):,.0f}",
        f"{sum(cost.teacher_forwards_saved for cost in costs):,}",
        ", ".join(sorted({cost.device for cost in costs})),
    )


def of_ids(run: Run) -> tuple[tuple[str, str], ...]:
    """Ids of what the run was made from, short enough to read."""
    inputs = run.result.inputs
    found = (("cache", inputs.cache), ("soft labels", inputs.soft_labels))
    return tuple((name, value[:12]) for name, value in found if value is not None)
