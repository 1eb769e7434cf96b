"""The verdict: which student is best, by how much, at which size and in which time."""

from collections.abc import Iterator
from statistics import fmean

from stages.report.noise import (
    Gain,
    binomial_gain,
    gain_over,
    is_measurable,
    mean_accuracy,
    seconds_text,
)
from stages.report.page import Tile, Verdict
from stages.report.subjects import Subjects
from stages.run_groups import Group
from stages.text import counted, percent

NO_TEACHER = "no teacher"


def verdict(subjects: Subjects) -> Verdict:
    """The result in a sentence, what the judgement rests on, and three tiles."""
    return Verdict(
        sentence=_sentence(subjects),
        detail=" ".join(_details(subjects)),
        tiles=(_accuracy(subjects), _size(subjects), _time(subjects)),
    )


def over_no_teacher(subjects: Subjects) -> Gain | None:
    """Gain of the best distilled student over no teacher; None where either is missing."""
    if subjects.best_taught is None or subjects.untaught is None:
        return None
    return gain_over(subjects.best_taught, subjects.untaught, num_test=subjects.num_test)


def over_teacher(subjects: Subjects, group: Group) -> Gain | None:
    """Gain over the teacher; None where its test accuracy is not known."""
    if subjects.teacher_accuracy is None:
        return None
    return binomial_gain(
        mean_accuracy(group), subjects.teacher_accuracy, num_test=subjects.num_test
    )


def _sentence(subjects: Subjects) -> str:
    best, taught, gain = subjects.best, subjects.best_taught, over_no_teacher(subjects)
    accuracy = percent(mean_accuracy(best), digits=1)
    if taught is None or gain is None:
        return f"{_named(best)} reaches {accuracy} on the test images."
    if best is taught:
        return f"{_named(best)} reaches {accuracy} on the test images, {_judged(gain, NO_TEACHER)}."
    if best is subjects.untaught:
        return (
            f"Training without a teacher is best, with {accuracy} on the test images. "
            f"The best distilled student, {_named(taught)}, is {_judged(gain, 'that')}."
        )
    return (  # of another network, so the gain has another reference
        f"{_named(best)} reaches {accuracy} on the test images, without a teacher. The best "
        f"distilled student, {_named(taught)}, is {_judged(gain, f'{NO_TEACHER} of its network')}."
    )


def _named(group: Group) -> str:
    """The name of a student within a sentence."""
    return f'"{group.name}"' if "," in group.name else group.name


def _judged(gain: Gain, reference: str) -> str:
    """For example: 2.7 points above no teacher, a clear gain."""
    side = "above" if gain.mean >= 0.0 else "below"
    word = "gain" if gain.mean >= 0.0 else "loss"
    judgement = f"a clear {word}" if gain.is_clear else "which is within noise"
    return f"{_points(abs(gain.mean))} {side} {reference}, {judgement}"


def _points(share: float) -> str:
    points = f"{100 * share:.1f}"
    return f"{points} point" if points == "1.0" else f"{points} points"


def _details(subjects: Subjects) -> Iterator[str]:
    gain, against_teacher = over_no_teacher(subjects), over_teacher(subjects, subjects.best)
    if subjects.teacher_accuracy is not None and against_teacher is not None:
        yield (
            f"The teacher reaches {percent(subjects.teacher_accuracy, digits=1)}: "
            f"{_named(subjects.best)} is {_judged(against_teacher, 'it')}."
        )
    if subjects.best_taught is None:
        yield "No student was distilled, so there is no gain to report."
    elif gain is None:
        yield (
            "No student was trained without a teacher, so the gain from distillation is not known. "
            "Add a variant with train_student.distil=false."
        )
    yield from _basis(subjects, gain)
    if subjects.best_held_out is not subjects.best:
        samples = counted(subjects.num_held_out, "held-out sample")
        yield f"By accuracy on the {samples}, {_named(subjects.best_held_out)} is best."


def _basis(subjects: Subjects, gain: Gain | None) -> Iterator[str]:
    """The meaning of clear, and the origin of the intervals."""
    if gain is None and subjects.teacher_accuracy is None:
        return
    yield "A difference is clear if its 95 % interval excludes zero."
    images = f"the binomial error of {counted(subjects.num_test, 'test image')}"
    if gain is None or not gain.num_pairs:
        yield f"The interval is {images}."
        return
    yield f"Between students it is that of {counted(gain.num_pairs, 'paired seed')}."
    if subjects.teacher_accuracy is not None:
        yield f"Against the teacher it is {images}."


def _accuracy(subjects: Subjects) -> Tile:
    best, lines = subjects.best, []
    gain = over_no_teacher(subjects)
    if gain is not None and best is subjects.best_taught:
        lines.append(_signed(gain, NO_TEACHER))
    elif subjects.best_taught is not None and best is not subjects.best_taught:
        accuracy = percent(mean_accuracy(subjects.best_taught), digits=1)
        lines.append(f"best distilled student: {accuracy}")
    against_teacher = over_teacher(subjects, best)
    if against_teacher is not None:
        lines.append(_signed(against_teacher, "the teacher"))
    elif subjects.teacher is not None:
        lines.append("the teacher was not run on the test images")
    return Tile(
        title="Test accuracy",
        value=percent(mean_accuracy(best), digits=1),
        lines=(_who(best), *lines),
    )


def _who(group: Group) -> str:
    seeds = len(group.runs)
    return f"{group.name}, mean of {seeds} seeds" if seeds > 1 else f"{group.name}, one seed"


def _signed(gain: Gain, reference: str) -> str:
    return f"{100 * gain.mean:+.1f} points against {reference}, {gain.word}"


def _size(subjects: Subjects) -> Tile:
    run = subjects.best.runs[0]
    parameters, megabytes = run.result.num_parameters, run.weights.stat().st_size / 1e6
    lines = [f"{run.result.arch}, {megabytes:.2f} MB"]
    teacher = None if subjects.teacher is None else subjects.teacher.size
    if teacher is not None:
        lines.append(
            f"teacher: {parameters_text(teacher.num_parameters)}, {teacher.num_bytes / 1e6:.2f} MB"
        )
        lines.append(_ratio(teacher.num_parameters / parameters))
    return Tile(title="Size", value=f"{parameters_text(parameters)} parameters", lines=tuple(lines))


def _ratio(times: float) -> str:
    if 0.95 <= times < 1.05:
        return "as large as the teacher"
    if times > 1.0:
        return f"{times:.1f} times smaller than the teacher"
    return f"{1.0 / times:.1f} times larger than the teacher"


def parameters_text(number: int) -> str:
    """A number of parameters with three digits."""
    for limit, unit in ((1e9, "billion"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return str(number)


def _time(subjects: Subjects) -> Tile:
    seconds = mean_seconds(subjects.best)
    lines = [f"{subjects.best.name}, per student"]
    other = subjects.untaught
    if other is not None and other is not subjects.best:
        lines.append(f"{NO_TEACHER}: {seconds_text(mean_seconds(other))}")
    if subjects.teacher is not None:
        once = seconds_text(subjects.teacher.cache.summary.seconds)
        lines.append(f"teacher's pass, once for all students: {once}")
    value = seconds_text(seconds)
    if not is_measurable(seconds):
        value = value.capitalize()
    return Tile(title="Training time", value=value, lines=tuple(lines))


def mean_seconds(group: Group) -> float:
    """Seconds of training, the mean over seeds."""
    return fmean(run.result.cost.seconds for run in group.runs)
