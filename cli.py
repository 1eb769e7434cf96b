"""Command line: parse, build one config, call one stage, print one line."""

import logging
import os
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from commands.cache import cache_app
from commands.exit import INTERRUPTED, run_and_exit
from commands.launch import launch
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
    seed_override,
    show,
    tell_interrupt,
    with_selection,
)
from commands.show import show_app


class _Commands(TyperGroup):
    """All commands; an interrupt before one of them begins is told too: typer exits silently."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with one_line_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
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
    run_and_exit(_command)


def _command() -> None:
    if is_one_of_many():  # torch tells at length, and for every rank, that another one has ended
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except KeyboardInterrupt:  # before typer reads the line; `_Commands` tells the others
        tell_interrupt()
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heartcut {metadata.version('heartcut')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings and results.")
    ] = False,
) -> None:
    """Distil image classifiers offline: run the teacher once, revise its labels, keep the best.

    The stages, in order: prepare, cache-teacher, select, train-student.
    """
    level = logging.WARNING if quiet else logging.INFO
    if prefix():  # of several processes the first one tells what all of them do
        level = logging.WARNING
    form = f"{prefix()}%(message)s"
    logging.basicConfig(level=level, format=form, stream=sys.stderr, force=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of fonts


@app.command()
def prepare(
    config: ConfigFile,
    override: Overrides = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave unreadable images out, and list them.")
    ] = False,
) -> None:
    """Write the images as train.beton and eval.beton."""
    extra = ["prepare.skip_corrupt=true"] if skip_corrupt else []
    with one_line_errors():
        settings = load(config, override, extra)
        from stages import prepare as stage  # numpy and FFCV load here, so --help stays instant

        with ranks_of_job() as ranks:
            show(ranks.first_before_others(lambda: stage.execute(settings)).folder, ranks)


@app.command()
def train_teacher(
    config: ConfigFile,
    override: Overrides = None,
    seed: Seed = None,
    resume: Resume = None,
) -> None:
    """Train a teacher of your own; not needed where there is a checkpoint."""
    with one_line_errors():
        settings = load(config, override, seed_override("train_teacher", seed))
        from stages import train_teacher as stage

        with ranks_of_job() as ranks:
            show(stage.execute(settings, resume=resume, ranks=ranks).path, ranks)


@app.command()
def cache_teacher(
    config: ConfigFile,
    override: Overrides = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, bf16 or fp32.", metavar="PRECISION")
    ] = None,
    shard_range: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Compute only these shards, beside other workers; the last one to finish seals.",
        ),
    ] = None,
) -> None:
    """Run the teacher once over every view and keep its logits and features.

    What is kept already is not computed again: after a kill, run the same command; to be faster,
    run it several times at once.
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


@app.command()
def select(
    config: ConfigFile,
    override: Overrides = None,
    strategy: Annotated[
        str | None, typer.Option(metavar="STRATEGY", help="What is kept: docs/selection.md.")
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Share of the rows to keep.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the table; without one, its id.")
    ] = None,
    repair: Annotated[
        str | None, typer.Option(metavar="REPAIR", help="head: refit the teacher's classifier.")
    ] = None,
    explain: Annotated[
        list[int] | None,
        typer.Option(
            metavar="SAMPLE_INDEX", help="Tell why this sample is kept or dropped; repeatable."
        ),
    ] = None,
    accept_mismatch: AcceptMismatch = None,
) -> None:
    """Revise the teacher's labels and choose what is distilled.

    --strategy, --fraction, --name and --repair stand for --set select.strategy=... and so on. A
    setting of CONFIG that has no effect with them is taken out by --set select.fraction=unset.
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
            show(stage.execute(settings, ranks=ranks).path, ranks)


@app.command()
def train_student(
    config: ConfigFile,
    override: Overrides = None,
    seed: Seed = None,
    selection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH", help="A table of the workspace by name, or any by path."
        ),
    ] = None,
    accept_mismatch: AcceptMismatch = None,
    online: Annotated[
        bool, typer.Option("--online", help="Run the teacher in the loop, to compare with.")
    ] = False,
    resume: Resume = None,
) -> None:
    """Train a student from the cached, revised labels; the teacher is not needed.

    After a kill or an interrupt, the same command goes on from the last checkpoint.
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


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the methods of distillation, what each needs of the cache, and its defaults."""
    from stages import methods as stage

    typer.echo(stage.as_json() if as_json else stage.as_text())


for many_runs in (compare, sweep, report):
    app.command()(many_runs)
# What follows the stage is the stage's own.
app.command(context_settings={"allow_interspersed_args": False})(launch)


if __name__ == "__main__":
    main()
