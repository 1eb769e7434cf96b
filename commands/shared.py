"""Parts that all commands share: their parameters, and errors in one line."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands import remedies
from commands.exit import FAILED, INTERRUPTED, PEER_LOST, READER_GONE, TERMINATED
from commands.one_voice import is_one_of_many, is_reporter, leave_for_torchrun, prefix
from commands.streams import LostOutputError
from pipeline.errors import ArtefactNotFound, ConfigError, PeerLost, PipelineError, Terminated

if TYPE_CHECKING:
    from pipeline.runtime.ranks import Ranks
    from stages.config.root import Config


def user_path(text: str) -> Path:
    """Path of an argument; `~` is the home, also where no shell has replaced it."""
    return Path(user_place(text))


def user_place(text: str) -> str:
    """Folder or address of an argument; `~` is the home."""
    from stages.config.homes import place_with_home

    try:
        return place_with_home(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from error


ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", parser=user_path, help="Configuration: a TOML file, see configs/."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key of the configuration, e.g. select.eta=0.7; repeatable.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Seed of the run, from 0; default: the configuration's."),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        parser=user_path,
        help="Resume this training (a .training folder), or fail and report what differs. "
        "Default: resume a training of the same settings, if there is one.",
    ),
]
AcceptMismatch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD",
        help="Difference between cache and images to accept: labels or pixels; repeatable. The run "
        "records it.",
    ),
]


_FULL = "could not be written", "Free some space or set another `workspace`."
_CLOSED = "could not be opened", "Check its permissions and its owner."
_NO_MAPPING = (
    "could not be mapped into memory",
    "Its file system cannot do that: set a `workspace` on another disk.",
)
_FOR_THE_USER = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: ("could not be written", "Set a `workspace` on a disk that can be written."),
    errno.ENAMETOOLONG: ("could not be opened", "Shorten its name."),
    errno.ENODEV: _NO_MAPPING,
    errno.EISDIR: ("could not be opened", "Name a file."),
}
"""Errors of the system that are not bugs: the failed action, and a remedy."""
LAUNCHED = "HEARTCUT_LAUNCHED"
"""Set by `heartcut launch` for its ranks, because it reports how they ended."""
_CAUSE_COMES_FIRST = 3.0
"""Grace period in seconds for a failed peer to report its own error first."""


def report_interrupt() -> None:
    """Print that the command was interrupted, and how to resume it."""
    sys.unraisablehook = lambda _: None  # destructors of what was half built add nothing
    after_control_c = "\n" if sys.stderr.isatty() else ""
    report_end(f"{after_control_c}interrupted: run the same command to resume")


def report_end(line: str, *, patience: float = 0.0) -> None:
    """Print why the command ends; of several processes, one prints it."""
    leave_for_torchrun(line.strip())
    if is_reporter(patience=patience):
        with suppress(OSError):  # the terminal has gone, or its disk is full
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
        raise ConfigError(
            f"heartcut {command} runs as one process (expected no launcher). Start it without "
            "`heartcut launch` and torchrun."
        )


def show(result: object, ranks: "Ranks") -> None:
    """Print the result of a command, once for all ranks."""
    if ranks.is_first:
        typer.echo(result)


def load(path: Path, overrides: list[str] | None, extra: list[str]) -> "Config":
    """Read a configuration; ``extra`` are the overrides that options stand for."""
    from stages.config.file import load_config

    remedies.use([path], overrides)
    return load_config(path, overrides=[*(overrides or []), *extra])


def seed_override(section: str, seed: int | None) -> list[str]:
    """Make the override that `--seed` stands for."""
    return [] if seed is None else [f"{section}.seed={seed}"]


def accepting(fields: list[str] | None) -> list[str]:
    """Make the override that `--accept-mismatch` stands for."""
    if not fields:
        return []
    return [f"select.accept_mismatch={sorted(set(fields))}"]


def quoted(key: str, text: str | None) -> list[str]:
    """Make the override that an option with any text stands for; none where it was not given."""
    return [] if text is None else [f"{key}={json.dumps(text, ensure_ascii=False)}"]


def with_selection(config: "Config", selection: str) -> "Config":
    """Set the selection that ``--selection`` stands for.

    A bare name means a table of the workspace. Text with a slash, or that ends in .parquet, is a
    path.
    """
    from stages.config.file import with_overrides

    is_path = "/" in selection or selection.startswith("~") or selection.endswith(".parquet")
    path = Path(selection) if is_path else config.selections_folder / f"{selection}.parquet"
    if not is_path and not path.exists():
        raise ArtefactNotFound(
            f"{path} does not exist. Make it with `heartcut select --name {selection}`, or pass "
            "the path of a table to --selection."
        )
    return with_overrides(config, quoted("train_student.selection", str(path)))


def parse_range(text: str) -> range:
    """Read ``FIRST:STOP`` as a range; ConfigError if it is not one."""
    first, colon, stop = text.partition(":")
    if not (colon and first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise ConfigError(
            f"--shard-range {text} is not a range (expected FIRST:STOP, for example 0:16). "
            "`heartcut cache estimate` prints the number of shards."
        )
    return range(int(first), int(stop))


def _one_line(message: str) -> str:
    """Escape what would move the cursor: names in a message may be anything."""
    return message if message.isprintable() else repr(message)[1:-1]


def _report_lost(output: LostOutputError) -> int:
    """Print why standard output was lost, unless its reader has ended; return the exit code."""
    if output.errno == errno.EPIPE:
        return READER_GONE
    why = os.strerror(output.errno or 0)
    report_end(
        f"error: standard output could not be written: {why}. Send it to a terminal, or to a file "
        "on a disk with free space."
    )
    return FAILED


@contextmanager
def one_line_errors(codes: Mapping[type[PipelineError], int] | None = None) -> Iterator[None]:
    """Print a user's mistake or an interrupt as one line; bugs keep their traceback.

    ``codes`` are exit codes for some errors and those derived from them; 1 for all others.
    """
    try:
        yield
    except KeyboardInterrupt as error:  # here, because typer would exit without a word
        report_interrupt()
        raise typer.Exit(code=INTERRUPTED) from error
    except Terminated as error:
        if LAUNCHED not in os.environ:
            report_end(str(error))
        raise typer.Exit(code=TERMINATED) from error
    except PeerLost as error:
        if LAUNCHED not in os.environ:
            report_end(f"error: {error}", patience=_CAUSE_COMES_FIRST)
        raise typer.Exit(code=PEER_LOST) from error
    except PipelineError as error:
        report_end(f"error: {_one_line(remedies.complete(str(error)))}")
        known = [(codes or {}).get(kind) for kind in type(error).__mro__]
        raise typer.Exit(code=next(filter(None, known), FAILED)) from error
    except LostOutputError as error:
        raise typer.Exit(code=_report_lost(error)) from error
    except OSError as error:
        if error.errno not in _FOR_THE_USER:
            raise
        where = error.filename or "the workspace"
        what, remedy = _FOR_THE_USER[error.errno]
        report_end(f"error: {where} {what}: {os.strerror(error.errno)}. {remedy}")
        raise typer.Exit(code=FAILED) from error
