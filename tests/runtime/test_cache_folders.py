"""Caches of compiled functions where the usual folders cannot be written."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.runtime import cache_folders

ROOT = Path(__file__).parents[2]
CHOSEN = ("NUMBA_CACHE_DIR", "MPLCONFIGDIR")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which nothing but the temporary folder can be written, not even by root."""
    closed = tmp_path / "file"
    closed.touch()  # no folder can be created below a file
    for name in (*CHOSEN, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(closed / "home"))
    monkeypatch.setattr(cache_folders, "_COMPILED", closed / "data")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cache_folders._own_folder.cache_clear()
    yield temporary
    cache_folders._own_folder.cache_clear()


def choose() -> list[str | None]:
    cache_folders.use_writable_numba_cache()
    cache_folders.use_writable_matplotlib_cache()
    return [os.environ.get(name) for name in CHOSEN]


@pytest.mark.usefixtures("machine")
def test_folders_that_can_be_written_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose() == [None, None]
    for name in CHOSEN:
        monkeypatch.setenv(name, str(tmp_path / name))
    assert choose() == [str(tmp_path / name) for name in CHOSEN]


def test_else_they_are_in_a_private_folder_for_temporary_files(machine):
    own = machine / f"heartcut-{os.getuid()}"
    assert choose() == [str(own / "numba"), str(own / "matplotlib")]
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("machine")
def test_a_home_that_does_not_exist_creates_no_folder_called_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert choose()[0] is not None
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("kind", ["link", "open to others"])
def test_a_folder_that_somebody_else_can_write_is_not_used(machine, tmp_path, kind):
    """Its compiled functions would run as ours."""
    theirs = machine / f"heartcut-{os.getuid()}"
    if kind == "link":
        (tmp_path / "theirs").mkdir()
        theirs.symlink_to(tmp_path / "theirs")
    else:
        theirs.mkdir()
        theirs.chmod(0o777)
    chosen = choose()
    assert all(Path(folder).parent.parent == machine for folder in chosen)
    assert not any(Path(folder).is_relative_to(theirs) for folder in chosen)


def test_a_machine_without_a_folder_for_temporary_files_is_one_line(machine, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(machine / "none"))
    with pytest.raises(PipelineError, match="Set TMPDIR to a folder that you can write"):
        choose()


def test_an_installation_and_a_home_that_are_read_only_compile_all_the_same(tmp_path):
    """numba raises when it decorates a function that it can cache nowhere."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=no_cache)
    (tmp_path / "pipeline" / "data" / "__pycache__").touch()  # not even root can write below
    (tmp_path / "tmp").mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": "/dev/null", "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", "import pipeline.data.ffcv_compat"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.glob("tmp/heartcut-*/numba/data_*/*.nbi"))


def no_cache(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]
