"""`heartcut show ...`: an artefact summarised in the terminal, or as one JSON document.

Exit codes: 0 shown; 1 no such artefact, or a damaged one; 2 wrong command line.
"""

from pathlib import Path
from typing import Annotated

import typer

from commands import remedies
from commands.shared import (
    ConfigFile,
    Overrides,
    load,
    one_line_errors,
    user_path,
    user_place,
)

show_app = typer.Typer(
    no_args_is_help=True,
    help="Summarise a teacher cache, a selection table, or runs in the terminal.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with unrounded numbers.")]


@show_app.command()
def cache(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            parser=user_place,
            help="Cache: a folder, an address, or a configuration.",
        ),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Summarise a teacher cache: accuracy in every view, mistakes, confidence."""
    with one_line_errors():
        from stages.show import cache as stage
        from stages.show.cache_text import as_text
        from stages.show.records import as_json as to_json

        remedies.use([place], override)
        shown = stage.execute(place, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command()
def selection(
    table: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            parser=user_place,
            help="Selection: a table, WORKSPACE/NAME, or a configuration.",
        ),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Summarise a selection: samples kept and why, classes, checks of its scores."""
    with one_line_errors():
        from stages.show import selection as stage
        from stages.show.records import as_json as to_json
        from stages.show.selection_text import as_text

        remedies.use([table], override)
        shown = stage.execute(table, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command()
def run(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            parser=user_path,
            help="Runs: folders of one or more runs, workspaces or configurations.",
        ),
    ],
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Summarise runs: accuracy, cost and training curves; several are compared."""
    with one_line_errors():
        from stages.show import run as stage
        from stages.show.records import as_json as to_json
        from stages.show.run_text import as_text

        remedies.use(places, override)
        shown = stage.execute(places, override or [])
        typer.echo(to_json(shown) if as_json else as_text(shown))


@show_app.command(hidden=True)
def runs_folder(config: ConfigFile, override: Overrides = None) -> None:
    """Print the folder of a configuration's runs, for `make tensorboard`."""
    with one_line_errors():
        folder = load(config, override, []).runs_folder
        from stages.show.places import require_runs

        require_runs(folder)
        typer.echo(folder)
