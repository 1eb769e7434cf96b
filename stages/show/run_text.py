"""Summary of runs as text."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from stages.show.run import GroupShown, RunShown, RunsShown, Seeds
from stages.show.text import curve, facts_table, plain, rendered, table, with_bars
from stages.text import counted, decimal, percent


def as_text(shown: RunsShown) -> str:
    """Print the summary of one run, or compare several."""
    only = shown.runs[0] if len(shown.runs) == 1 else None
    return rendered(_several(shown) if only is None else _one(only))


def _one(run: RunShown) -> Iterator[RenderableType]:
    yield facts_table(tuple(_facts(run)))
    yield _epochs(run)
    yield _curves([run])


def _facts(run: RunShown) -> Iterator[tuple[str, str]]:
    result = run.result
    yield "run", run.path
    yield "id", result.id
    yield "what", run.group
    yield "network", f"{result.arch}, {result.num_parameters:,} parameters"
    in_the_loop = ", the teacher in the loop" if result.online else ""
    yield "method", f"{result.method or 'none'}{in_the_loop}"
    yield "seed", str(result.seed)
    yield (
        "distilled",
        f"{result.num_distilled:,} of {counted(result.num_training_samples, 'training sample')}",
    )
    yield (
        "held out",
        f"last {percent(result.held_out_accuracy_last)}, "
        f"best {percent(result.held_out_accuracy_best)} in epoch {result.best_epoch}, "
        f"mean of last {result.mean_of_last} {percent(result.held_out_accuracy_mean_of_last)}",
    )
    yield "test", f"{percent(result.test_accuracy)}, loss {result.test_loss:.4f}"
    yield "calibration", f"error {result.test_calibration_error:.4f} on test images"
    if result.teacher_agreement_test is not None:
        yield (
            "agreement",
            f"with the teacher on {percent(result.teacher_agreement_held_out)} of the held-out "
            f"and {percent(result.teacher_agreement_test)} of the test images",
        )
    cost = result.cost
    yield (
        "cost",
        f"{cost.seconds:,.1f} s, {cost.training_images_per_second:,.0f} images/s, "
        f"{counted(cost.teacher_forwards_saved, 'teacher forward')} saved, {cost.device}",
    )
    inputs = result.inputs.model_dump(exclude={"accepted_mismatches"})
    yield from ((name.replace("_", " "), str(value)) for name, value in inputs.items() if value)
    if result.inputs.accepted_mismatches:
        yield "accepted", f"other {' and '.join(result.inputs.accepted_mismatches)}"
    yield "versions", ", ".join(f"{name} {value}" for name, value in result.versions.items())


def _epochs(run: RunShown) -> Table:
    """List every epoch, or some of many."""
    step = -(-len(run.epochs) // 20)
    epochs = run.epochs[::-1][::step][::-1] if step else ()
    rows = [
        (
            f"{one.get('epoch', 0):.0f}",
            decimal(one.get("training_loss"), ".4f"),
            percent(one.get("training_accuracy")),
            percent(one.get("held_out_accuracy")),
            decimal(one.get("held_out_loss"), ".4f"),
            decimal(one.get("lr"), ".4g"),
            decimal(one.get("seconds"), ".1f"),
        )
        for one in epochs
    ]
    header = ("epoch", "loss", "accuracy", "held out", "held-out loss", "lr", "s")
    return table(header, rows, left=0)


def _several(shown: RunsShown) -> Iterator[RenderableType]:
    yield _accuracies(shown.groups)
    yield _others(shown.groups)
    yield plain("mean +- standard deviation over seeds; choose by held-out, not test accuracy")
    yield _curves(shown.runs)


def _accuracies(groups: Sequence[GroupShown]) -> Table:
    last = {group.mean_of_last for group in groups}
    several = f"mean of {last.pop()}" if len(last) == 1 else "mean of last"
    rows = [
        (
            group.name,
            str(len(group.seeds)),
            _shares(group.numbers["held_out_accuracy_last"]),
            _shares(group.numbers["held_out_accuracy_best"]),
            _shares(group.numbers["held_out_accuracy_mean_of_last"]),
            _shares(group.numbers["test_accuracy"]),
        )
        for group in groups
    ]
    return table(("accuracy, %", "n", "last", "best", several, "test"), rows)


def _others(groups: Sequence[GroupShown]) -> Table:
    rows = [
        (
            group.name,
            _shares(group.numbers["teacher_agreement_test"]),
            _values(group.numbers["test_calibration_error"], ".3f"),
            _distilled(group),
            _values(group.numbers["seconds"], ",.0f"),
            decimal(group.numbers["training_images_per_second"].mean, ",.0f"),
        )
        for group in groups
    ]
    header = ("on test images", "agrees, %", "calibration", "distilled", "s", "images/s")
    return table(header, rows)


def _distilled(group: GroupShown) -> str:
    mean = group.numbers["num_distilled"].mean
    return percent((mean or 0.0) / group.num_training_samples, digits=1)


def _shares(found: Seeds) -> str:
    in_per_cent = Seeds(
        num=found.num,
        mean=None if found.mean is None else 100 * found.mean,
        sd=None if found.sd is None else 100 * found.sd,
    )
    return _values(in_per_cent, ".2f")


def _values(found: Seeds, form: str) -> str:
    mean = decimal(found.mean, form)
    return mean if found.sd is None else f"{mean}±{format(found.sd, form)}"


def _curves(runs: Sequence[RunShown]) -> Table:
    """Draw loss and held-out accuracy by epoch, each from its least to its largest value."""
    rows: list[tuple[str, ...]] = []
    groups = ["", *(run.group for run in runs)]
    for before, run in zip(groups, runs, strict=False):
        if run.group != before:
            rows.append((run.group, "", "", ""))
        losses, accuracies = (
            [one.get(name) for one in run.epochs] for name in ("training_loss", "held_out_accuracy")
        )
        last = percent(run.result.held_out_accuracy_last)
        rows.append((f"  {run.name}", curve(losses, width=16), curve(accuracies, width=16), last))
    found = with_bars(("by epoch", "training loss", "held-out accuracy", "last"), rows)
    for column in found.columns[1:3]:
        column.justify, column.no_wrap = "left", True
    return found
