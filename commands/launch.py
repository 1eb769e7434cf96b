"""`heartcut launch`: a stage in several processes of this machine, by torchrun's engine."""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from commands.exit import FAILED, INTERRUPTED, PEER_LOST, TERMINATED
from commands.shared import LAUNCHED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import ProcessFailure

STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "train-student", "compare")
_SECONDS_TO_STOP = 20
"""For the checkpoint of a rank that is asked to stop, before it is killed."""


def launch(
    context: typer.Context,
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="Its arguments, as without launch.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-n", min=1, help="On this machine; docs/scaling.md.")
    ] = 1,
) -> None:
    """Run a stage in several processes, which give what one process gives, sooner.

    heartcut launch --processes 8 cache-teacher CONFIG
    """
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, TyperGroup)
    if stage not in STAGES:
        expected = f"{', '.join(STAGES[:-1])} or {STAGES[-1]}"
        raise typer.BadParameter(f"{stage} is no stage (expected {expected}).")
    # A mistake on the command line is told here, once.
    group.commands[stage].make_context(stage, list(arguments or []), parent=context.parent)
    quiet = ["--quiet"] * bool(context.parent.params.get("quiet"))
    raise typer.Exit(code=_run([*quiet, stage, *(arguments or [])], processes=processes))


def _run(arguments: list[str], *, processes: int) -> int:
    """The exit code of the stage in ``processes`` processes; says how a rank died."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[LAUNCHED] = "1"
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's own account of what is told in one line below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=_SECONDS_TO_STOP,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "cli", *arguments)
    except SignalException as stopped:
        return INTERRUPTED if stopped.sigval == signal.SIGINT else TERMINATED
    except ChildFailedError as failed:
        rank, failure = _cause(failed.failures)
        return _tell(rank, failure, processes=processes)
    return 0


def _cause(failures: dict[int, "ProcessFailure"]) -> tuple[int, "ProcessFailure"]:
    """The failure that the others follow from: a kill, else an error, else the first.

    The ranks that are left are asked to stop by SIGTERM, or find that another one is lost.
    """

    def order(rank: int) -> tuple[int, int, int]:
        code = failures[rank].exitcode
        consequence = {PEER_LOST: 3, -signal.SIGTERM: 2, TERMINATED: 2}.get(code, int(code > 0))
        return consequence, failures[rank].timestamp, rank

    rank = min(failures, key=order)
    return rank, failures[rank]


def _tell(rank: int, failure: "ProcessFailure", *, processes: int) -> int:
    """One line about a rank that could not speak for itself; the exit code."""
    went_on = "The others were stopped: run the same command to go on from what is kept."
    who, code = f"rank {rank} of {processes}", failure.exitcode
    if code < 0:
        name = signal.Signals(-code).name
        why = ", perhaps for want of memory" if name == "SIGKILL" else ""
        typer.echo(
            f"error: rank {rank} of {processes} was ended by {name}{why}. {went_on}", err=True
        )
        return 128 - code
    if code == PEER_LOST:
        typer.echo(
            f"error: {who} lost the connection to another one, and no rank says why (expected all "
            f"to go on). {went_on}",
            err=True,
        )
    if code == FAILED and not isinstance(failure.message, dict):
        typer.echo(f"error: {who} failed, its traceback is above. {went_on}", err=True)
    return code
