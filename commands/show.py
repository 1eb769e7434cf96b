"""`heartcut show ...`: what an artefact is like, in a terminal, or as one JSON document.

Exit codes: 0 shown; 1 there is no such artefact, or it is damaged; 2 a wrong command line.
"""

from pathlib import Path
from typing import Annotated

import typer

from commands.shared import ConfigFile, Overrides, load, one_line_errors

show_app = typer.Typer(
    no_args_is_help=True,
    help="Look at a teacher cache, a selection table, or runs, in the terminal.",
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, numbers unrounded.")]


@show_app.command()
def cache(
    place: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A folder, an address, or a configuration."),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What the teacher is: its accuracy in every view, its mistakes, and how sure it is."""
    with one_line_errors():
        from stages.show import cache as stage
        from stages.show.cache_text import as_text
        from stages.show.records import as_json as to_json

        shown = stage.execute(place, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command()
def selection(
    table: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A table, WORKSPACE/NAME, or a configuration."),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What a selection keeps and why, of which classes, and whether to believe its scores."""
    with one_line_errors():
        from stages.show import selection as stage
        from stages.show.records import as_json as to_json
        from stages.show.selection_text import as_text

        shown = stage.execute(table, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command()
def run(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Runs, folders of runs, workspaces or configurations."
        ),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """How good runs are, what they cost and how they came there; several, side by side."""
    with one_line_errors():
        from stages.show import run as stage
        from stages.show.records import as_json as to_json
        from stages.show.run_text import as_text

        shown = stage.execute(places, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command(hidden=True)
def runs_folder(config: ConfigFile, override: Overrides = None) -> None:
    """Where the runs of a configuration lie, for `make tensorboard`."""
    with one_line_errors():
        folder = load(config, override, []).runs_folder
        from stages.show.places import require_runs

        require_runs(folder)
        typer.echo(folder)
