"""`heartcut launch`: a stage in several processes of this machine, with torchrun's engine."""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from commands.exit import FAILED, INTERRUPTED, PEER_LOST, TERMINATED
from commands.shared import LAUNCHED, report_end
from commands.signals import is_ignored, terminated

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import ProcessFailure

STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "train-student", "compare")
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that stop all ranks, unless they are ignored."""
_SECONDS_TO_STOP = 20
"""Time for the checkpoint of a rank that is asked to stop, before it is killed."""


def launch(
    context: typer.Context,
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help=f"Stage to run: {', '.join(STAGES[:-1])} or {STAGES[-1]}."
        ),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="Arguments of the stage.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-n", min=1, help="Number of processes on this machine.")
    ] = 1,
) -> None:
    """Run a stage in several processes of this machine: the same result, sooner.

    Example: heartcut launch --processes 8 cache-teacher CONFIG
    """
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, TyperGroup)
    if stage not in STAGES:
        expected = f"{', '.join(STAGES[:-1])} or {STAGES[-1]}"
        raise typer.BadParameter(f"{stage} is not a stage (expected {expected}).")
    # A mistake on the command line is reported here, once.
    group.commands[stage].make_context(stage, list(arguments or []), parent=context.parent)
    given = context.parent.params
    verbosity = [f"--{name}" for name in ("quiet", "verbose") if given.get(name)]
    raise typer.Exit(code=_run([*verbosity, stage, *(arguments or [])], processes=processes))


def _run(arguments: list[str], *, processes: int) -> int:
    """Run a stage in ``processes`` processes and return its exit code; report how a rank died."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[LAUNCHED] = "1"
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's own report of what is one line below
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
        signals_to_handle=",".join(s.name for s in _HANDLED if not is_ignored(s)),
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "heartcut_main", *arguments)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:  # the ranks report it
            return INTERRUPTED
        report_end(terminated(stopped.sigval))
        return TERMINATED
    except ChildFailedError as failed:
        rank, failure = _cause(failed.failures)
        return _report(rank, failure, processes=processes)
    return 0


def _cause(failures: dict[int, "ProcessFailure"]) -> tuple[int, "ProcessFailure"]:
    """Find the failure that caused the others: a kill, else an error, else the first.

    The other ranks are asked to stop by SIGTERM, or find that a peer is lost.
    """

    def order(rank: int) -> tuple[int, int, int]:
        code = failures[rank].exitcode
        consequence = {PEER_LOST: 3, -signal.SIGTERM: 2, TERMINATED: 2}.get(code, int(code > 0))
        return consequence, failures[rank].timestamp, rank

    rank = min(failures, key=order)
    return rank, failures[rank]


def _report(rank: int, failure: "ProcessFailure", *, processes: int) -> int:
    """Print one line about a rank that could not report its end; return the exit code."""
    remedy = "The other ranks were stopped: run the same command to resume."
    who, code = f"rank {rank} of {processes}", failure.exitcode
    if code < 0:
        name = signal.Signals(-code).name
        why = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        typer.echo(
            f"error: rank {rank} of {processes} was ended by {name}{why}. {remedy}", err=True
        )
        return 128 - code
    if code == PEER_LOST:
        typer.echo(
            f"error: {who} lost the connection to another rank, and no rank reported why "
            f"(expected all to continue). {remedy}",
            err=True,
        )
    if code == TERMINATED:
        report_end(f"terminated: {who} received a signal. {remedy}")
    if code == FAILED and not isinstance(failure.message, dict):
        typer.echo(f"error: {who} failed, its traceback is above. {remedy}", err=True)
    return code
