"""Entry point of the `heartcut` command, under a name that nothing else has.

The packages of heartcut have short names. A `cli.py`, a `pipeline/` or the like that is found
earlier, in PYTHONPATH or the current folder, must not take their place. `find_own_modules` makes
sure of that before any of them is imported.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

OWN = ("cli", "commands", "pipeline", "stages")
"""Names that mean heartcut's own modules, wherever Python would search first."""
_ROOT = Path(__file__).parent


class _OwnModules:
    """Finder of heartcut's own modules next to this file."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in OWN:
            return None
        package = _ROOT / name / "__init__.py"
        if package.exists():
            return importlib.util.spec_from_file_location(name, package)
        return importlib.util.spec_from_file_location(name, _ROOT / f"{name}.py")


def find_own_modules() -> None:
    """Let the names in `OWN` be found here first."""
    sys.meta_path.insert(0, _OwnModules)  # type: ignore[arg-type]


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale is ASCII, which has no umlauts.

    Names of files and folders become names of classes, which must be the same on every machine.
    """
    if sys.getfilesystemencoding() == "ascii" and sys.orig_argv[1:]:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line."""
    use_utf8()
    find_own_modules()
    import cli

    cli.main()


if __name__ == "__main__":
    main()
