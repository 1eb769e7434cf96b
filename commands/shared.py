"""What all commands share: their parameters, and telling a mistake in one line."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.exit import FAILED, INTERRUPTED, PEER_LOST, TERMINATED
from commands.one_voice import is_one_of_many, leave_for_torchrun, prefix, tells
from pipeline.errors import ArtefactNotFound, ConfigError, PeerLost, PipelineError, Terminated

if TYPE_CHECKING:
    from pipeline.runtime.ranks import Ranks
    from stages.config.root import Config


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. select.eta=0.7."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the run.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Go on with this training (a .training folder), or say what differs. Without it, a "
        "training of the same settings goes on by itself.",
    ),
]
AcceptMismatch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD",
        help="Use a cache although its labels or pixels differ; written into the run.",
    ),
]


_FULL = "could not be written", "Free some space or set another `workspace`."
_CLOSED = "could not be opened", "Check its permissions, or whose it is."
_FOR_THE_USER = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EISDIR: ("could not be opened", "Name a file."),
}
"""Errors of the system that are no bugs: what could not be done, and what to do about it."""
LAUNCHED = "HEARTCUT_LAUNCHED"
"""Set by `heartcut launch` for its ranks: it tells which of them died, and how."""
_CAUSE_COMES_FIRST = 3.0
"""Seconds that a process which lost another one leaves that one to tell why."""


def tell_interrupt() -> None:
    after_control_c = "\n" if sys.stderr.isatty() else ""
    tell(f"{after_control_c}interrupted: nothing half-written was left under a final name")


def tell(line: str, *, patience: float = 0.0) -> None:
    """Say why the command ends; of several processes, one does."""
    leave_for_torchrun(line.strip())
    if tells(patience=patience):
        typer.echo(prefix() + line, err=True)


@contextmanager
def ranks_of_job() -> Iterator["Ranks"]:
    """The processes that torchrun started for this command; this one alone without it."""
    from pipeline.runtime.ranks import joined_ranks

    with joined_ranks() as ranks:
        yield ranks


def refuse_ranks(command: str) -> None:
    """ConfigError if torchrun started this command, which is for one process."""
    if is_one_of_many():
        raise ConfigError(f"`heartcut {command}` runs as one process. Start it without a launcher.")


def show(result: object, ranks: "Ranks") -> None:
    """Print what a command made."""
    if ranks.is_first:
        typer.echo(result)


def load(path: Path, overrides: list[str] | None, extra: list[str]) -> "Config":
    from stages.config.file import load_config

    return load_config(path, overrides=[*(overrides or []), *extra])


def seed_override(section: str, seed: int | None) -> list[str]:
    return [] if seed is None else [f"{section}.seed={seed}"]


def accepting(fields: list[str] | None) -> list[str]:
    """The override that `--accept-mismatch` stands for."""
    if not fields:
        return []
    return [f"select.accept_mismatch={sorted(set(fields))}"]


def quoted(key: str, text: str | None) -> list[str]:
    """The override that an option with any text stands for; none where it was not given."""
    return [] if text is None else [f"{key}={json.dumps(text, ensure_ascii=False)}"]


def with_selection(config: "Config", selection: str) -> "Config":
    """``config`` with the selection that ``--selection`` stands for.

    A bare name means a table of the workspace; what has a slash or ends in .parquet is a path.
    """
    from stages.config.file import with_overrides

    is_path = "/" in selection or os.sep in selection or selection.endswith(".parquet")
    path = Path(selection) if is_path else config.selections_folder / f"{selection}.parquet"
    if not is_path and not path.exists():
        raise ArtefactNotFound(
            f"{path} does not exist. Make it with `heartcut select --name {selection}`, or pass "
            "the path of a table."
        )
    return with_overrides(config, quoted("train_student.selection", str(path)))


def parse_range(text: str) -> range:
    """``FIRST:STOP`` as a range; ConfigError if it is none."""
    first, colon, stop = text.partition(":")
    if not (colon and first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise ConfigError(
            f"--shard-range {text} is no range (expected FIRST:STOP, for example 0:16). "
            "`heartcut cache estimate` tells how many shards there are."
        )
    return range(int(first), int(stop))


def _one_line(message: str) -> str:
    """``message`` without what would move the cursor: names in it may be anything."""
    return message if message.isprintable() else repr(message)[1:-1]


@contextmanager
def one_line_errors(codes: Mapping[type[PipelineError], int] | None = None) -> Iterator[None]:
    """Show a user's mistake or an interrupt as one line; let bugs keep their traceback.

    ``codes`` are exit codes for some errors and those derived from them; 1 for all others.
    """
    try:
        yield
    except KeyboardInterrupt as error:  # here, because typer would exit without a word
        tell_interrupt()
        raise typer.Exit(code=INTERRUPTED) from error
    except Terminated as error:
        tell(str(error))
        raise typer.Exit(code=TERMINATED) from error
    except PeerLost as error:
        if LAUNCHED not in os.environ:
            tell(f"error: {error}", patience=_CAUSE_COMES_FIRST)
        raise typer.Exit(code=PEER_LOST) from error
    except PipelineError as error:
        tell(f"error: {_one_line(str(error))}")
        known = [(codes or {}).get(kind) for kind in type(error).__mro__]
        raise typer.Exit(code=next(filter(None, known), FAILED)) from error
    except OSError as error:
        if error.errno not in _FOR_THE_USER:
            raise
        where = error.filename or "the workspace"
        what, remedy = _FOR_THE_USER[error.errno]
        tell(f"error: {where} {what}: {os.strerror(error.errno)}. {remedy}")
        raise typer.Exit(code=FAILED) from error
