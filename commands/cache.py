"""`heartcut cache ...`: inspect, check, copy and clean up teacher caches.

Exit codes: 0 OK; 1 failed; 2 wrong command line; 3 damaged; 4 two caches, or a cache and its
teacher, differ; 5 the cache is not complete; 130 interrupted.
"""

from pathlib import Path
from typing import Annotated

import typer

from commands import remedies
from commands.exit import DAMAGED, DIFFERENT, INCOMPLETE
from commands.shared import (
    ConfigFile,
    Overrides,
    load,
    one_line_errors,
    user_path,
    user_place,
)
from pipeline.errors import ArtefactMismatch, ConfigError, Damaged, NotSealed, PipelineError

STATE: dict[type[PipelineError], int] = {Damaged: DAMAGED, NotSealed: INCOMPLETE}
"""Exit codes for the state of a cache."""
COMPARED: dict[type[PipelineError], int] = {ArtefactMismatch: DIFFERENT, **STATE}
"""Exit codes where a cache is compared with another cache, or with its teacher."""

cache_app = typer.Typer(
    no_args_is_help=True,
    help="Inspect, check and share teacher caches.",
    epilog="Exit codes: 0 OK, 1 failed, 2 wrong command line, 3 damaged, "
    "4 different, 5 not complete, 130 interrupted.",
)

_IMAGES = "Estimate for this many images instead of the prepared data set."
_SIDE = "Side of the images in pixels, as the teacher sees them, with --images."
_MEASURE = "Run a few seconds of the work and print how long all of it takes."
_PUSH_TO = "Folder or address to copy to; default: `share` of the configuration."

Cache = Annotated[
    str,
    typer.Argument(
        metavar="CACHE",
        parser=user_place,
        help="Cache: a folder, an s3://, gs://, az:// or https:// address, or a configuration, "
        "which stands for its caches.",
    ),
]
Address = Annotated[
    str,
    typer.Argument(metavar="CACHE", parser=user_place, help="Cache: a folder or an address."),
]
Root = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", parser=user_place, help="Folder or address that holds many caches."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Write without conditional creation, for servers that lack it. Nobody else may write "
        "there meanwhile.",
    ),
]


@cache_app.command()
def info(cache: Cache, override: Overrides = None, as_json: AsJson = False) -> None:
    """Print what a cache was made from, its size, and the accuracy of its teacher."""
    with one_line_errors(STATE):
        from stages.cache import info as stage

        remedies.use([cache], override)
        for place in stage.places(cache, override or []):
            typer.echo(stage.info(place, as_json=as_json))


@cache_app.command("list")
def list_caches(root: Root) -> None:
    """List the caches of a folder or bucket, complete or not."""
    with one_line_errors():
        from stages.cache import info as stage

        typer.echo(stage.table_of(root))


@cache_app.command()
def diff(first: Address, second: Address) -> None:
    """List the differences between two caches: inputs, images, labels, numbers."""
    with one_line_errors(STATE):
        from stages.cache import info as stage

        differences = stage.diff(first, second)
        typer.echo("\n".join(differences) or "the same, to the byte")
    if differences:
        raise typer.Exit(code=DIFFERENT)


@cache_app.command()
def estimate(
    config: ConfigFile,
    override: Overrides = None,
    images: Annotated[int | None, typer.Option(min=1, help=_IMAGES)] = None,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes, with --images.")] = 1000,
    side: Annotated[int, typer.Option(min=4, help=_SIDE)] = 224,
    measure: Annotated[bool, typer.Option("--measure", help=_MEASURE)] = False,
) -> None:
    """Estimate the size of a cache for every choice of arrays, and the time to write it."""
    with one_line_errors():
        settings = load(config, override, [])
        from stages.cache import estimate as stage

        hypothetical = None
        if images is not None:
            hypothetical = stage.HypotheticalDataset(
                num_samples=images, num_classes=classes, side=side
            )
        typer.echo(stage.estimate(settings, hypothetical=hypothetical, measures=measure))


@cache_app.command()
def verify(
    cache: Cache,
    override: Overrides = None,
    read_bytes: Annotated[
        bool, typer.Option("--bytes", help="Read every object and compare its SHA-256.")
    ] = False,
    recompute: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Fraction of the samples, e.g. 0.001 or 0.1%, on which to run the teacher again; "
            "CACHE must be a configuration.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference accepted between a logit and its cached value; default: "
            "0.005 (fp32) or 0.05 (bf16) times the largest logit.",
        ),
    ] = None,
) -> None:
    """Check a cache: its structure, every byte, or its numbers against the teacher."""
    fine = True
    with one_line_errors(STATE):
        from stages.cache import info as cache_info
        from stages.cache import verify as cache_verify

        remedies.use([cache], override)
        if recompute is None and tolerance is not None:
            raise ConfigError("--tolerance has no effect without --recompute; remove it.")
        share = None if recompute is None else cache_verify.parse_share(recompute)
        settings = None if share is None else cache_info.configuration(cache, override or [])
        for place in cache_info.places(cache, override or []):
            finding = cache_verify.check(place, read_bytes=read_bytes)
            typer.echo("\n".join(finding.lines))
            fine &= finding.is_fine
    if not fine:
        raise typer.Exit(code=DAMAGED)
    if share is None or settings is None:
        return
    with one_line_errors(COMPARED):
        finding = cache_verify.recompute(settings, share=share, tolerance=tolerance)
    typer.echo("\n".join(finding.lines))
    if not finding.is_fine:
        raise typer.Exit(code=DIFFERENT)


@cache_app.command()
def push(
    cache: Cache,
    root: Annotated[
        str | None, typer.Argument(metavar="PLACE", parser=user_place, help=_PUSH_TO)
    ] = None,
    override: Overrides = None,
    single_writer: SingleWriter = False,
) -> None:
    """Copy a complete cache to a shared place; to resume, run the same command."""
    with one_line_errors(COMPARED):
        from stages.cache import copy as stage

        remedies.use([cache], override)
        for copy in stage.push(cache, root, override or [], single_writer=single_writer):
            typer.echo(copy)


@cache_app.command()
def pull(
    cache: Address,
    root: Root,
) -> None:
    """Copy a complete cache to a folder or another place, and check every byte."""
    with one_line_errors(COMPARED):
        from stages.cache import copy as stage

        typer.echo(stage.pull(cache, root))


@cache_app.command()
def gc(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=user_path, help="Folder that holds many caches."),
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the files; default: list.")
    ] = False,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Include caches that were never completed.")
    ] = False,
    hydrated: Annotated[
        bool, typer.Option("--hydrated", help="Include local copies, which are recomputed.")
    ] = False,
    older_than: Annotated[float, typer.Option(min=0.0, help="Least age in hours.")] = 24.0,
) -> None:
    """List or remove what killed processes left behind in a folder of caches."""
    with one_line_errors():
        from stages.cache import garbage as stage

        typer.echo(
            stage.collect_garbage(
                folder, delete=delete, unsealed=unsealed, hydrated=hydrated, hours=older_than
            )
        )
