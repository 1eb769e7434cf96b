"""Standard streams that are closed, full, cut off, or of another encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import streams
from tests.support.commands import ROOT, Finished

HEARTCUT = f"{sys.executable} -m heartcut_main"
COMMANDS = (
    "--help",
    "--version",
    "methods",
    "prepare none.toml",
    "show cache tests/golden/workspace-v1/caches/b619d0c1be5b",
)


def shell(line: str, **environment: str) -> Finished:
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_streams_change_nothing(command):
    code = 1 if "none" in command else 0
    plain = shell(f"{HEARTCUT} {command} </dev/null")
    assert plain.code == code
    closed = shell(f"{HEARTCUT} {command} <&- >&- 2>&-")
    assert closed == Finished(code=code, out="", err="")
    assert shell(f"{HEARTCUT} {command} >&-").err == plain.err
    assert shell(f"{HEARTCUT} {command} 2>&-").out == plain.out


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    """Else what a library prints would be written into it."""
    code = (
        "import os, sys\n"
        "from commands.streams import prepare_streams\n"
        "prepare_streams()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "os.system('echo of a library'); os.system('echo of another >&2')\n"
        "file.write(str(file.fileno() > 2))"
    )
    done = shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.code == 0
    assert (tmp_path / "file").read_text() == "True"


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_full_disk_behind_the_output_is_one_line(command):
    done = shell(f"{HEARTCUT} {command} >/dev/full")
    assert mentions_output(done.error_line)


def mentions_output(line: str) -> bool:
    return "standard output could not be written: No space left on device." in line


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_reader_that_has_ended_is_no_error_message(command):
    """As with `| head`: the exit code is that of a program that SIGPIPE ended."""
    done = shell(f"sleep 0 | true; {HEARTCUT} {command} | :; exit ${{PIPESTATUS[0]}}")
    assert (done.code, done.err) == (141, "")


def test_an_error_is_an_error_where_it_cannot_be_printed():
    assert shell(f"{HEARTCUT} prepare none.toml 2>/dev/full") == Finished(code=1, out="", err="")


def test_characters_that_the_output_lacks_are_escaped_and_bytes_of_names_are_kept():
    names = Path("Größe \u4e2d\udcff")
    code = f"from commands.streams import prepare_streams\nprepare_streams(); print({str(names)!r})"
    done = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii:strict")
    assert (done.code, done.err) == (0, "")
    assert done.out == "Gr\\xf6\\xdfe \\u4e2d\udcff\n"


def test_streams_that_are_fine_are_left_as_they_are(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    streams.prepare_streams()
    print("Größe", flush=True)  # noqa: T201
    assert capfd.readouterr().out == "Größe\n"
