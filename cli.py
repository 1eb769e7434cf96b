"""Command line: parse, build one configuration, call one stage, print one line."""

import os
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from commands import remedies
from commands.cache import cache_app
from commands.exit import INTERRUPTED, TERMINATED, run_and_exit
from commands.launch import launch
from commands.logs import Verbosity, set_up_logs
from commands.one_voice import is_one_of_many, prefix
from commands.runs import compare, report, sweep
from commands.shared import (
    AcceptMismatch,
    ConfigFile,
    Overrides,
    Resume,
    Seed,
    accepting,
    load,
    one_line_errors,
    parse_range,
    quoted,
    ranks_of_job,
    refuse_ranks,
    report_end,
    report_interrupt,
    seed_override,
    show,
    with_selection,
)
from commands.show import show_app
from commands.signals import end_with_one_line
from commands.streams import prepare_streams
from pipeline.errors import Terminated
from stages.methods import STRATEGIES

_STRATEGIES = (
    f"Strategy that chooses the samples: {', '.join(STRATEGIES)}; see docs/reference/selection.md."
)
_FRACTION = "Fraction of the samples to keep, above 0 and up to 1; default: by threshold."
_REPAIR = "Repair of the teacher: none, or head to refit its classifier; default: none."


class _Commands(TyperGroup):
    """All commands; an interrupt before a command begins is reported, where typer is silent."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with one_line_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        remedies.begin()
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cache_app, name="cache")
app.add_typer(show_app, name="show")


def main() -> None:
    """Entry point of the `heartcut` command."""
    prepare_streams()
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own cannot be imported here; charts need none
    end_with_one_line()
    run_and_exit(_command)


def _command() -> None:
    if is_one_of_many():  # each rank of torch reports at length that another one has ended
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except KeyboardInterrupt:  # before typer reads the line; `_Commands` reports later ones
        report_interrupt()
        sys.exit(INTERRUPTED)
    except Terminated as error:
        report_end(str(error))
        sys.exit(TERMINATED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heartcut {metadata.version('heartcut')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print warnings, errors and results only.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print details too, such as solver steps.")
    ] = False,
) -> None:
    """Distil image classifiers offline: cache a teacher's outputs, correct them, train students.

    The stages, in order: prepare, cache-teacher, select, train-student. `compare` runs them all.
    """
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other; remove one.")
    is_first = not prefix()  # the first of several processes logs what all of them do
    level: Verbosity = "verbose" if verbose else "normal"
    set_up_logs("quiet" if quiet or not is_first else level, prefix=prefix())


@app.command()
def prepare(
    config: ConfigFile,
    override: Overrides = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option(
            "--skip-corrupt", help="Leave out unreadable images and list them; default: stop."
        ),
    ] = False,
) -> None:
    """Write the images to train.beton and eval.beton."""
    extra = ["prepare.skip_corrupt=true"] if skip_corrupt else []
    with one_line_errors():
        settings = load(config, override, extra)
        from stages import prepare as stage  # numpy and FFCV load here, so --help stays instant

        stage.require_known_architectures(settings)
        with ranks_of_job() as ranks:
            show(ranks.first_before_others(lambda: stage.execute(settings)).folder, ranks)
        if settings.select.cache is not None:
            remedies.suggest("select")
        else:
            remedies.suggest(
                "cache-teacher" if settings.cache_teacher.checkpoint else "train-teacher"
            )


@app.command()
def train_teacher(
    config: ConfigFile,
    override: Overrides = None,
    seed: Seed = None,
    resume: Resume = None,
) -> None:
    """Train a teacher; not needed if `cache_teacher.checkpoint` names one."""
    with one_line_errors():
        settings = load(config, override, seed_override("train_teacher", seed))
        from stages import train_teacher as stage

        with ranks_of_job() as ranks:
            show(stage.execute(settings, resume=resume, ranks=ranks).path, ranks)
        remedies.suggest("cache-teacher")


@app.command()
def cache_teacher(
    config: ConfigFile,
    override: Overrides = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="Precision of the teacher: auto, bf16 or fp32; default: the configuration's.",
        ),
    ] = None,
    shard_range: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Range of shards to compute, e.g. 0:16, while other workers compute the rest; "
            "default: all that are missing.",
        ),
    ] = None,
) -> None:
    """Run the teacher once over every view and cache its logits and features.

    To resume after a kill, run the same command. To be faster, run it several times at once: the
    workers share the shards.
    """
    extra = [] if precision is None else [f"cache_teacher.precision={precision}"]
    with one_line_errors():
        settings = load(config, override, extra)
        shards = None if shard_range is None else parse_range(shard_range)
        from stages import cache_teacher as stage

        with ranks_of_job() as ranks:
            cache = stage.execute(settings, shards=shards, ranks=ranks)
            if cache is not None:
                show(cache.path, ranks)
                remedies.suggest("select")


@app.command()
def select(
    config: ConfigFile,
    override: Overrides = None,
    strategy: Annotated[str | None, typer.Option(metavar="STRATEGY", help=_STRATEGIES)] = None,
    fraction: Annotated[str | None, typer.Option(metavar="SHARE", help=_FRACTION)] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the table; default: its ID.")
    ] = None,
    repair: Annotated[str | None, typer.Option(metavar="REPAIR", help=_REPAIR)] = None,
    explain: Annotated[
        list[int] | None,
        typer.Option(
            metavar="SAMPLE_INDEX",
            help="Explain why this sample is kept or dropped, from 0; repeatable.",
        ),
    ] = None,
    accept_mismatch: AcceptMismatch = None,
) -> None:
    """Revise the teacher's labels and choose the samples to distil.

    --strategy, --fraction, --name and --repair stand for --set select.strategy=... and so on. To
    remove a setting of CONFIG that has no effect with them, use --set select.fraction=unset.
    """
    extra = [] if fraction is None else [f"select.fraction={fraction}"]
    for key, value in (("strategy", strategy), ("name", name), ("repair", repair)):
        extra += quoted(f"select.{key}", value)
    with one_line_errors():
        settings = load(config, override, [*extra, *accepting(accept_mismatch)])
        from stages import select as stage

        if explain:
            refuse_ranks("select --explain")
            typer.echo(stage.explain(settings, explain))
            return
        with ranks_of_job() as ranks:
            path = stage.execute(settings, ranks=ranks).path
            show(path, ranks)
        remedies.suggest("train-student", *(["--selection", str(path)] if extra else []))


@app.command()
def train_student(
    config: ConfigFile,
    override: Overrides = None,
    seed: Seed = None,
    selection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Selection table: a name in the workspace, or a path; default: the table that "
            "`select` writes with this configuration.",
        ),
    ] = None,
    accept_mismatch: AcceptMismatch = None,
    online: Annotated[
        bool, typer.Option("--online", help="Run the teacher in the training loop, as a baseline.")
    ] = False,
    resume: Resume = None,
) -> None:
    """Train a student from the cached, revised labels; the teacher is not needed.

    To resume from the last checkpoint after a kill or an interrupt, run the same command.
    """
    extra = seed_override("train_student", seed)
    extra += ["train_student.online=true"] if online else []
    with one_line_errors():
        settings = load(config, override, [*extra, *accepting(accept_mismatch)])
        if selection is not None:
            settings = with_selection(settings, selection)
        from stages import train_student as stage

        with ranks_of_job() as ranks:
            show(stage.execute(settings, resume=resume, ranks=ranks).path, ranks)
        remedies.suggest("report")


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the methods of distillation, what each needs from the cache, and its defaults."""
    from stages import methods as stage

    typer.echo(stage.as_json() if as_json else stage.as_text())


for many_runs in (compare, sweep, report):
    app.command()(many_runs)
# Arguments after the stage belong to the stage.
app.command(context_settings={"allow_interspersed_args": False})(launch)


if __name__ == "__main__":
    main()
