"""`heartcut cache ...`: look at teacher caches, check them, move them.

Exit codes: 0 done and fine; 1 it could not be done; 2 a wrong command line; 3 damage was found;
4 two caches, or a cache and its teacher, differ; 5 the cache is not complete; 130 interrupted.
"""

from pathlib import Path
from typing import Annotated

import typer

from commands.exit import DAMAGED, DIFFERENT, INCOMPLETE
from commands.shared import ConfigFile, Overrides, load, one_line_errors
from pipeline.errors import ArtefactMismatch, ConfigError, Damaged, NotSealed, PipelineError

STATE: dict[type[PipelineError], int] = {Damaged: DAMAGED, NotSealed: INCOMPLETE}
"""Exit codes that tell of a cache's state."""
COMPARED: dict[type[PipelineError], int] = {ArtefactMismatch: DIFFERENT, **STATE}
"""Where a cache is compared with another one, or with its teacher."""

cache_app = typer.Typer(
    no_args_is_help=True,
    help="Teacher caches: look at them, check them, share them.",
    epilog="Exit codes: 0 fine, 1 could not be done, 2 wrong command line, 3 damaged, "
    "4 different, 5 not complete, 130 interrupted.",
)

Cache = Annotated[
    str,
    typer.Argument(
        metavar="CACHE",
        help="A folder, s3://, gs://, az:// or https:// address, or a configuration: its caches.",
    ),
]
Address = Annotated[
    str, typer.Argument(metavar="CACHE", help="The folder or address of one cache.")
]
Root = Annotated[str, typer.Argument(metavar="PLACE", help="The folder or address of many caches.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="For servers without conditional creation, while nobody else writes there.",
    ),
]


@cache_app.command()
def info(cache: Cache, override: Overrides = None, as_json: AsJson = False) -> None:
    """What a cache was made from, how large it is, and how good its teacher."""
    with one_line_errors(STATE):
        from stages.cache import info as stage

        for place in stage.places(cache, override or []):
            typer.echo(stage.info(place, as_json=as_json))


@cache_app.command("list")
def list_caches(root: Root) -> None:
    """The caches of a folder or bucket, complete or not."""
    with one_line_errors():
        from stages.cache import info as stage

        typer.echo(stage.table_of(root))


@cache_app.command()
def diff(first: Address, second: Address) -> None:
    """Where two caches differ: what they were made from, images, labels, numbers."""
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
    images: Annotated[
        int | None, typer.Option(min=1, help="On paper: so many images, which need not exist.")
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Of those images.")] = 1000,
    side: Annotated[int, typer.Option(min=4, help="Of those images as shown, pixels.")] = 224,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run some seconds of the work, and tell the time.")
    ] = False,
) -> None:
    """How large a cache will be, for every choice of what to keep, and how long it will take."""
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
            help="Run the teacher again on this share of the rows, e.g. 0.1%; needs CACHE to be a "
            "configuration.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest |logit - cached logit|; default: 0.005 (fp32) or 0.05 (bf16) of the "
            "largest |logit|.",
        ),
    ] = None,
) -> None:
    """Check a cache: its structure in seconds, every byte, or its numbers against the teacher."""
    fine = True
    with one_line_errors(STATE):
        from stages.cache import info as cache_info
        from stages.cache import verify as cache_verify

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
        str | None, typer.Argument(metavar="PLACE", help="Default: `share` of the configuration.")
    ] = None,
    override: Overrides = None,
    single_writer: SingleWriter = False,
) -> None:
    """Copy a complete cache to the team's place; a push that was cut off goes on."""
    with one_line_errors(COMPARED):
        from stages.cache import copy as stage

        for copy in stage.push(cache, root, override or [], single_writer=single_writer):
            typer.echo(copy)


@cache_app.command()
def pull(
    cache: Address,
    root: Root,
) -> None:
    """Copy a complete cache to a folder, or another place; every byte is checked on the way."""
    with one_line_errors(COMPARED):
        from stages.cache import copy as stage

        typer.echo(stage.pull(cache, root))


@cache_app.command()
def gc(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of many caches.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove; otherwise only tell.")] = False,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Also caches that were never completed.")
    ] = False,
    hydrated: Annotated[
        bool, typer.Option("--hydrated", help="Also local copies, which are made again.")
    ] = False,
    older_than: Annotated[float, typer.Option(min=0.0, help="Hours since the last change.")] = 24.0,
) -> None:
    """Tell, or remove, what killed processes left behind in a folder of caches."""
    with one_line_errors():
        from stages.cache import garbage as stage

        typer.echo(
            stage.collect_garbage(
                folder, delete=delete, unsealed=unsealed, hydrated=hydrated, hours=older_than
            )
        )
