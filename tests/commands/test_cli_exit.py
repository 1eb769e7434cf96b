"""A command ends with its exit code, all its output and its exit handlers, and nothing more."""

import subprocess
import sys

import pytest

from tests.support.commands import ROOT, Finished

PROGRAM = """
import atexit, os, sys, threading, time
from commands import exit as ending

class Taken:
    def __del__(self):
        os.write(2, b"taken apart ")

{setting}
atexit.register(os.write, 2, b"handler ")
kept = Taken()
def late():
    time.sleep(0.2)
    os.write(2, b"thread ")
def command():
    threading.Thread(target=late).start()
    print("x" * 100_000)
    {end}
ending.run_and_exit(command)
"""


def ended(end: str, *, setting: str = "") -> Finished:
    code = PROGRAM.format(end=end, setting=setting)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit()", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(True)", 1),
        ("sys.exit(5)", 5),
        ("sys.exit(130)", 130),
        ("sys.exit(-1)", 255),
    ],
)
def test_threads_end_and_exit_handlers_run_but_nothing_is_taken_apart(end, code):
    done = ended(end)
    assert done.code == code
    assert done.out == "x" * 100_000 + "\n"
    assert done.err == "thread handler "


def test_what_python_has_to_print_is_printed():
    done = ended("sys.exit('a message')")
    assert (done.code, done.err) == (1, "a message\nthread handler taken apart ")
    done = ended("1 / 0")
    assert done.code == 1
    assert "ZeroDivisionError" in done.err


def test_output_that_cannot_be_written_is_an_error():
    full = "sys.stdout = open('/dev/full', 'w', buffering=1_000_000)"
    done = ended("pass", setting=full)
    assert done.code == 120  # CPython's own for it
    assert "No space left" in done.err


def test_in_a_process_that_is_no_command_nothing_changes():
    code = "import cli, os\nclass T:\n def __del__(self): os.write(1, b'taken apart')\nt = T()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"taken apart"


ABANDONED = """
from commands.logs import set_up_logs

async def begun_by_nobody(): pass

set_up_logs("normal")
begun_by_nobody()
"""


def test_a_coroutine_that_an_interrupt_abandoned_prints_nothing():
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
