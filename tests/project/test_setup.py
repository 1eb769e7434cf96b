"""Set-up on a new machine: lock file, shell scripts, and messages without root."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.cases import mentions

ROOT = Path(__file__).parents[2]
SCRIPTS = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = ["bash", "dirname", "flock", "ls", "mkdir", "paste", "realpath", "rm", "sed"]


def name_of(requirement: str) -> str:
    """Normalised package name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def add_command(environment: dict[str, str], name: str, line: str) -> None:
    """Put a command of one shell line on the PATH of ``environment``."""
    command = Path(environment["PATH"]) / name
    command.write_text(f"#!/bin/sh\n{line}\n")
    command.chmod(0o755)


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Environment of a user who is not root, on Debian without FFCV's system libraries."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in COMMANDS:
        if found := shutil.which(command):
            (folder / command).symlink_to(found)
    machine = {"PATH": str(folder), "VENV": str(tmp_path / "a place" / "venv")}
    add_command(machine, "id", "echo 1000")
    add_command(machine, "apt-get", "exit 99")
    add_command(machine, "apt-cache", "exit 1")
    add_command(machine, "uv", "echo uv 0")
    add_command(machine, "python3.11", "echo 3.11 yes")
    return machine


def run_setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", ROOT / "scripts" / "setup.sh"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # no terminal to ask for a password on
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "word", ["://", "http:", "https:", "index-url", "find-links", "file:", " @ ", "/"]
)
def test_lock_file_holds_no_address(word):
    assert word not in LOCK


def test_lock_file_covers_every_dependency():
    locked = {name_of(line) for line in LOCK.splitlines() if "==" in line}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {name_of(requirement) for requirement in wanted} <= locked


def test_every_locked_package_has_a_hash():
    pins = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_can_be_run(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_without_root_set_up_names_the_line_to_run_and_touches_nothing(bare_machine):
    done = run_setup(bare_machine)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.strip().startswith("apt-get update && apt-get install -y --no-install-recommends ")
    assert {"libopencv-dev", "libturbojpeg0-dev", "pkg-config", "g++"} <= set(line.split())
    assert not Path(bare_machine["VENV"]).exists()


def test_a_sudo_that_asks_for_a_password_is_not_called_without_a_terminal(bare_machine):
    add_command(bare_machine, "sudo", "exit 1")
    done = run_setup(bare_machine)
    assert done.returncode == 1
    assert "\n    sudo apt-get update && sudo apt-get install " in done.stderr


def test_a_system_without_apt_gets_the_list_of_needed_libraries(bare_machine):
    (Path(bare_machine["PATH"]) / "apt-get").unlink()
    done = run_setup(bare_machine)
    assert done.returncode == 1
    assert "OpenCV 4 and TurboJPEG" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_python_out_of_range_is_rejected_by_name(bare_machine):
    add_command(bare_machine, "python3.9", "echo 3.9 yes")
    done = run_setup(bare_machine | {"PYTHON": "python3.9"})
    assert done.returncode == 1
    assert mentions(done.stderr, "PYTHON=python3.9", "3.9", "3.11")


def test_a_folder_that_set_up_did_not_make_is_left_alone(bare_machine):
    folder = Path(bare_machine["VENV"])
    folder.mkdir(parents=True)
    (folder / "precious").touch()
    add_command(bare_machine, "pkg-config", "exit 0")
    add_command(bare_machine, "g++", "exit 0")
    done = run_setup(bare_machine)
    assert done.returncode == 1
    assert "was not made by set-up" in done.stderr
    assert (folder / "precious").exists()
