"""Commands about many students at once: compare, sweep, report."""

from pathlib import Path
from typing import Annotated

import typer

from commands import remedies
from commands.exit import INCOMPLETE
from commands.shared import (
    ConfigFile,
    Overrides,
    load,
    one_line_errors,
    ranks_of_job,
    refuse_ranks,
    show,
    user_path,
)

_POINT = "Point to run, by name; repeatable; default: all points."
_SEED = "Seed to run; repeatable; default: all seeds."
_OUTPUT = "File to write; default: report.html in the workspace."
_TABLE = "Selection table whose samples are shown; default: the scored table of the runs."


def compare(config: ConfigFile, override: Overrides = None) -> None:
    """Run all stages, train a student for each variant, and print one table."""
    with one_line_errors():
        settings = load(config, override, [])
        from stages import compare as stage

        with ranks_of_job() as ranks:
            show(stage.as_text(stage.execute(settings, ranks=ranks)), ranks)
        remedies.suggest("report")


def sweep(
    config: ConfigFile,
    override: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the points, the runs done and left, and the time."),
    ] = False,
    point: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_POINT)] = None,
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help=_SEED)] = None,
) -> None:
    """Train a student at every point of the sweep with every seed, and print one table.

    A failed run does not stop the others; the exit code is then 5. To resume, or to repeat failed
    runs, run the same command.
    """
    with one_line_errors():
        refuse_ranks("sweep")
        settings = load(config, override, [])
        from stages.sweep import run as stage
        from stages.sweep.tasks import Part

        part = Part(points=tuple(point or ()), seeds=tuple(seed or ()))
        if dry_run:
            typer.echo(stage.preview(settings, part))
            return
        from stages.sweep.report import as_markdown

        done = stage.execute(settings, part)
        typer.echo(as_markdown(done))
        if done.num_failed:
            raise typer.Exit(code=INCOMPLETE)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            parser=user_path,
            help="Runs to report: configurations, workspaces, sweeps or runs.",
        ),
    ],
    override: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", parser=user_path, help=_OUTPUT),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Student to compare the others with; repeatable; default: no teacher and KD.",
        ),
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(metavar="TABLE", parser=user_path, help=_TABLE)
    ] = None,
    thumbnails: Annotated[
        int, typer.Option(min=1, help="Largest number of samples to show.")
    ] = 200,
) -> None:
    """Write one self-contained HTML file about students, their teacher and single samples."""
    with one_line_errors():
        remedies.use(runs, override)
        refuse_ranks("report")
        from stages.report import write as stage

        settings = stage.ReportSettings(
            output=output,
            baselines=tuple(baseline or ()),
            selection=selection,
            thumbnails=thumbnails,
        )
        typer.echo(stage.execute(runs, settings, overrides=override or ()))
