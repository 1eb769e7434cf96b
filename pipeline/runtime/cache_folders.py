"""Folders in which libraries keep what they compiled, where their usual ones cannot be written.

An installation in a container or for all users is often read-only, and so may the home be. numba
then compiles nothing at all, and matplotlib warns at every start.
"""

import atexit
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from pipeline.errors import PipelineError

_COMPILED = Path(__file__).parents[1] / "data"
"""The package with compiled functions; numba keeps them in its `__pycache__` first."""


def use_writable_numba_cache() -> None:
    """Choose the folder of numba's compiled functions, unless its usual ones can be written.

    It must be called before numba is imported. A folder that the user has chosen is kept.

    Raises:
        PipelineError: if no folder of this machine can be written, not even for temporary files.
    """
    in_package = str(_COMPILED / "__pycache__")
    usual = [os.environ.get("NUMBA_CACHE_DIR", ""), in_package, _of_user("numba")]
    if not any(_is_writable(folder) for folder in usual):
        os.environ["NUMBA_CACHE_DIR"] = str(_own_folder() / "numba")


def use_writable_matplotlib_cache() -> None:
    """Choose matplotlib's folder, as `use_writable_numba_cache` does numba's."""
    chosen = os.environ.get("MPLCONFIGDIR")
    usual = [chosen] if chosen else [_of_user("matplotlib"), _settings_of_user("matplotlib")]
    if not all(_is_writable(folder) for folder in usual):
        os.environ["MPLCONFIGDIR"] = str(_own_folder() / "matplotlib")


def _of_user(name: str) -> str:
    """Folder of a library below the user's folder of caches; "" if there is no home."""
    return _absolute(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", name))


def _settings_of_user(name: str) -> str:
    return _absolute(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", name))


def _absolute(path: Path) -> str:
    """Path with the home in it; "" if there is no home, where libraries would create a `~`."""
    found = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises without a home
    return found if os.path.isabs(found) else ""  # noqa: PTH117


def _is_writable(folder: Path | str) -> bool:
    """Try to create the folder and a file in it, as the libraries do."""
    if not str(folder):
        return False
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def _own_folder() -> Path:
    """A folder of this user alone: what it holds is code, so others must not have written it."""
    try:
        folder = Path(tempfile.gettempdir(), f"heartcut-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_private(folder) and _is_writable(folder):
            return folder
        folder = Path(tempfile.mkdtemp(prefix="heartcut-"))
    except OSError as error:
        raise PipelineError(
            "No folder can be written for temporary files: Python tried TMPDIR, /tmp, /var/tmp "
            "and the current folder. Set TMPDIR to a folder that you can write."
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
