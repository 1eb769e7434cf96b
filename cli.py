"""Command line: parse, build one config, call one stage, print one line."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from stages.configs import Config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. select.eta=0.7."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the run.")]


def main() -> None:
    """Entry point of the `heartcut` command."""
    try:
        app()
    except KeyboardInterrupt:  # before a command began; `one_line_errors` tells the others
        _tell_interrupt()
        sys.exit(INTERRUPTED)


def _tell_interrupt() -> None:
    after_control_c = "\n" if sys.stderr.isatty() else ""
    typer.echo(
        f"{after_control_c}interrupted: nothing half-written was left under a final name", err=True
    )


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
    """Distil image classifiers offline: run the teacher once, revise its mistakes, keep the best.

    The stages, in order: prepare, cache-teacher, select, train-student.
    """
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)


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
        settings = _load(config, override, extra)
        from stages import prepare as stage  # numpy and FFCV load here, so --help stays instant

        typer.echo(stage.execute(settings).folder)


@app.command()
def train_teacher(config: ConfigFile, override: Overrides = None, seed: Seed = None) -> None:
    """Train a teacher of your own; not needed where there is a checkpoint."""
    with one_line_errors():
        settings = _load(config, override, _seed("train_teacher", seed))
        from stages import train_teacher as stage

        typer.echo(stage.execute(settings).path)


@app.command()
def cache_teacher(
    config: ConfigFile,
    override: Overrides = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, bf16 or fp32.", metavar="PRECISION")
    ] = None,
) -> None:
    """Run the teacher once over every view and keep its logits and features."""
    extra = [] if precision is None else [f"cache_teacher.precision={precision}"]
    with one_line_errors():
        settings = _load(config, override, extra)
        from stages import cache_teacher as stage

        typer.echo(stage.execute(settings).path)


@app.command()
def select(config: ConfigFile, override: Overrides = None) -> None:
    """Revise the teacher's labels and choose what is distilled."""
    with one_line_errors():
        settings = _load(config, override, [])
        from stages import select as stage

        typer.echo(stage.execute(settings).path)


@app.command()
def train_student(config: ConfigFile, override: Overrides = None, seed: Seed = None) -> None:
    """Train a student from the cached, revised labels; the teacher is not needed."""
    with one_line_errors():
        settings = _load(config, override, _seed("train_student", seed))
        from stages import train_student as stage

        typer.echo(stage.execute(settings).path)


@app.command()
def compare(config: ConfigFile, override: Overrides = None) -> None:
    """Run every stage and the student under every variant of the compare table; print one table."""
    with one_line_errors():
        settings = _load(config, override, [])
        from stages import compare as stage

        typer.echo(stage.as_markdown(stage.execute(settings)))


def _load(path: Path, overrides: list[str] | None, extra: list[str]) -> "Config":
    from stages.config_file import load_config

    return load_config(path, overrides=[*(overrides or []), *extra])


def _seed(section: str, seed: int | None) -> list[str]:
    return [] if seed is None else [f"{section}.seed={seed}"]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a user's mistake or an interrupt as one line; let bugs keep their traceback."""
    try:
        yield
    except KeyboardInterrupt as error:  # here, because typer would exit without a word
        _tell_interrupt()
        raise typer.Exit(code=INTERRUPTED) from error
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(code=1) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the workspace"
        typer.echo(
            f"error: {where} could not be written: {os.strerror(error.errno)}. "
            "Free some space or set another `workspace`.",
            err=True,
        )
        raise typer.Exit(code=1) from error


if __name__ == "__main__":
    main()
