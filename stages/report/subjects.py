"""Students and teacher of a report: which of them is best, which is compared, in which colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stages.report.noise import mean_accuracy
from stages.report.svg_charts import TEACHER_LOOK, Look, look
from stages.report.teacher import Answers, TeacherFacts
from stages.run_groups import Group, is_student, soft_labels_of

MOST_GROUPS = 7
"""Lines that a chart has room for."""
TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """Everyone whom the page shows."""

    groups: Sequence[Group]
    compared: Sequence[Group]
    """Students that all others are compared with."""
    teacher: TeacherFacts | None
    answers: Answers | None
    """Predictions of the teacher on the test images; None where they were not cached."""
    num_test: int
    """Number of test images."""
    num_held_out: int
    """Number of held-out samples."""
    class_names: Sequence[str]

    @cached_property
    def best(self) -> Group:
        """The student with the highest test accuracy."""
        return max(self.students, key=mean_accuracy)

    @cached_property
    def best_held_out(self) -> Group:
        """The student with the highest accuracy on held-out samples; of several, `best`."""
        highest = max(self.students, key=held_out_accuracy)
        is_tied = held_out_accuracy(self.best) == held_out_accuracy(highest)
        return self.best if is_tied else highest

    @cached_property
    def best_taught(self) -> Group | None:
        """The best of the students that learned from a teacher."""
        return max((g for g in self.students if is_taught(g)), key=mean_accuracy, default=None)

    @cached_property
    def untaught(self) -> Group | None:
        """The best student without a teacher, of the same architecture if there is one."""
        plain = [group for group in self.groups if group.is_plain]
        wanted = (self.best_taught or self.best).runs[0].result.arch
        same = [group for group in plain if group.runs[0].result.arch == wanted]
        return max(same or plain, key=mean_accuracy, default=None)

    @cached_property
    def students(self) -> Sequence[Group]:
        """All but teachers; all where there is nothing else."""
        return [group for group in self.groups if is_student(group.runs[0])] or self.groups

    @property
    def has_several_seeds(self) -> bool:
        """Any student was trained from more than one seed."""
        return any(len(group.runs) > 1 for group in self.groups)

    @cached_property
    def drawn(self) -> list[Group]:
        """The groups that charts show."""
        best = [self.best, self.best_taught or self.best, self.untaught or self.best]
        wanted = {group.name for group in [*best, *self.compared]}
        return drawn(self.groups, [group for group in self.groups if group.name in wanted])

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """Colour of everyone that charts show, by name, the same in the whole page."""
        return {group.name: look(number) for number, group in enumerate(self.drawn)}

    def colour_of(self, name: str) -> str:
        """Colour for the tables; empty: charts do not show it."""
        found = self.looks.get(name)
        return "" if found is None else found.colour

    @property
    def teacher_colour(self) -> str:
        return TEACHER_LOOK.colour

    @property
    def teacher_accuracy(self) -> float | None:
        """Accuracy of the teacher on the test images; None where they were not cached."""
        if self.teacher is None or self.teacher.test is None:
            return None
        return self.teacher.test.summary.accuracy_training[0]


def held_out_accuracy(group: Group) -> float:
    """Accuracy on held-out samples: the mean of the last epochs, over seeds."""
    return float(np.mean(list(group.by_seed("held_out_accuracy_mean_of_last").values())))


def is_taught(group: Group) -> bool:
    """Learned from a teacher."""
    return group.runs[0].result.method is not None


def drawn(groups: Sequence[Group], compared: Sequence[Group]) -> list[Group]:
    """The groups that charts show: all, or those compared with and the best on held-out samples."""
    if len(groups) <= MOST_GROUPS:
        return list(groups)
    others = sorted((g for g in groups if g not in compared), key=held_out_accuracy, reverse=True)
    kept = [*compared, *others[: max(0, MOST_GROUPS - len(compared))]]
    return [group for group in groups if group in kept]


def references(groups: Sequence[Group], wanted: Sequence[str]) -> list[Group]:
    """The students that others are compared with: the wanted ones, or the first of each kind.

    The kinds are no teacher, and distillation without revision and selection.

    Raises:
        KeyError: if no student has that name.
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
