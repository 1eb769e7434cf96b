"""The commands that are about many students at once: compare, sweep, report."""

from pathlib import Path
from typing import Annotated

import typer

from commands.exit import INCOMPLETE
from commands.shared import (
    ConfigFile,
    Overrides,
    load,
    one_line_errors,
    ranks_of_job,
    refuse_ranks,
    show,
)


def compare(config: ConfigFile, override: Overrides = None) -> None:
    """Run every stage and the student under every variant of the compare table; print one table."""
    with one_line_errors():
        settings = load(config, override, [])
        from stages import compare as stage

        with ranks_of_job() as ranks:
            show(stage.as_markdown(stage.execute(settings, ranks=ranks)), ranks)


def sweep(
    config: ConfigFile,
    override: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List points, runs done and left, and the time.")
    ] = False,
    point: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this point; repeatable.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Only this seed; repeatable.")
    ] = None,
) -> None:
    """Run the student at every point of the sweep table under every seed; print one table.

    A failed run does not stop the others; the exit code is then 5. After a kill, and to try failed
    runs again, run the same command.
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
        typer.Argument(metavar="RUN...", help="Configurations, workspaces, sweeps or runs."),
    ],
    override: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the workspace.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Student to compare all with; repeatable."),
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Whose samples are shown.")
    ] = None,
    thumbnails: Annotated[int, typer.Option(min=1, help="Most samples shown.")] = 200,
) -> None:
    """Write one HTML file about students, their teacher, and single samples.

    It is readable on a phone, prints well, can be sent, and asks nothing of any server.
    """
    with one_line_errors():
        refuse_ranks("report")
        from stages.report import write as stage

        settings = stage.ReportSettings(
            output=output,
            baselines=tuple(baseline or ()),
            selection=selection,
            thumbnails=thumbnails,
        )
        typer.echo(stage.execute(runs, settings, overrides=override or ()))
