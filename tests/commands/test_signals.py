"""Signals that end a command outside of a training, which has checkpoints of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.commands import ROOT

WORK = """
import os, sys, time
import cli, typer
from commands.shared import one_line_errors
from commands.signals import end_with_one_line

def work():
    with one_line_errors():
        if {fork} and os.fork() == 0:
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(60)
        if not {fork}:
            os.write(1, b"%d\\n" % os.getpid())
        os.wait() if {fork} else time.sleep(60)
        os.write(1, b"unharmed\\n")

def command():
    try:
        work()
    except typer.Exit as end:
        sys.exit(end.exit_code)

cli._command = command
cli.main()
"""


def signalled(number: int, *, before: str = "", fork: bool = False) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, or its worker, that gets a signal."""
    code = f"import signal; {before}\n" + WORK.format(fork=fork)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.kill(int(process.stdout.readline()), number)
    if before:
        time.sleep(0.5)
        assert process.poll() is None
        process.kill()
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_one_line(number):
    code, out, err = signalled(number)
    assert (code, out) == (143, "")
    assert err.startswith(f"terminated by {number.name}")
    assert "run the same command to resume" in err
    assert err.count("\n") == 1


def test_an_ignored_signal_is_ignored():
    signalled(signal.SIGHUP, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")


def test_a_worker_of_a_command_ends_without_a_word():
    assert signalled(signal.SIGTERM, fork=True) == (0, "unharmed\n", "")
