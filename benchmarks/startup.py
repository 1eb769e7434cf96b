"""Claims: `--help` takes less than a second; a stage whose output exists takes a few seconds.

Each command runs as its own process on the digits, in turn: with `--help`, and with existing
output. `python benchmarks/startup.py --setup` times set-up too: `make setup` in a new folder and
virtual environment (it downloads the packages), and a second time.

    python benchmarks/startup.py [--rounds 5] [--setup]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import machine

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "digits.toml")
SWEEP = str(ROOT / "configs" / "digits-sweep.toml")
STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "train-student", "compare")
MOST_SECONDS_OF_HELP = 1.0


def seconds(*command: str, **environment: str) -> float:
    """Time of one command, which must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - started


def heartcut(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", *arguments]


def commands(workspace: Path) -> dict[str, list[str]]:
    """Command lines by name."""
    where = ["--set", f"workspace={workspace}"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "heartcut --help": heartcut("--help"),
        "heartcut --version": heartcut("--version"),
        "heartcut select --help": heartcut("select", "--help"),
        "heartcut methods": heartcut("methods"),
        **{f"heartcut {stage}, done": heartcut(stage, CONFIG, *where) for stage in STAGES},
        "heartcut cache list": heartcut("cache", "list", str(workspace / "caches")),
        "heartcut sweep --dry-run": heartcut("sweep", SWEEP, "--dry-run", *where),
    }


def show(times: dict[str, list[float]]) -> None:
    print(f"\nstart-up, seconds\n{machine()}\n")
    print(f"{'':32} {'median':>8} {'min - max':>16} {'n':>3}")
    for name, values in times.items():
        spread = f"{min(values):.2f} - {max(values):.2f}"
        print(f"{name:32} {statistics.median(values):>8.2f} {spread:>16} {len(values):>3}")
    print(json.dumps({"claim": "start-up, seconds", "machine": machine(), "seconds": times}))


def setup_times(folder: Path) -> dict[str, list[float]]:
    """Time `make setup` in a copy of the project: the first time, and a second time."""
    copy = folder / "heartcut"
    left_out = shutil.ignore_patterns(".venv", ".git", "work", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    setup = ["make", "-C", str(copy), "setup", "VENV=.venv"]
    return {"make setup, first": [seconds(*setup)], "make setup, again": [seconds(*setup)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setup", action="store_true", help="time set-up too")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "work"
        seconds(*heartcut("compare", CONFIG, "--set", f"workspace={workspace}"))
        asked = commands(workspace)
        times: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(arguments.rounds):
            for name, command in asked.items():
                times[name].append(seconds(*command))
        if arguments.setup:
            times |= setup_times(Path(folder))
    show(times)
    slow = [
        name
        for name, values in times.items()
        if "--help" in name and statistics.median(values) > MOST_SECONDS_OF_HELP
    ]
    sys.exit(f"too slow: {', '.join(slow)}" if slow else 0)


if __name__ == "__main__":
    main()
