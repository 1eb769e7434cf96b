"""Claims: a stage's memory grows by at most a few hundred bytes for each image, and the memory of a
training does not grow with its epochs.

Every stage runs as its own process at three sizes. The measure is the peak of the process's own
memory (RssAnon). Mapped files are in the page cache, which is freed on demand.

    python benchmarks/memory.py [--sizes 10000 20000 40000] [--epochs 50]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _common import machine
from PIL import Image

STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "train-student")
MOST_BYTES_AN_IMAGE = 1_000
MOST_GROWTH = 0.02
CLASSES = 10
CONFIG = """
[prepare]
source = "folder"
path = "{images}"

[views]
count = 1

[train_teacher]
epochs = 1

[cache_teacher]
shard_rows = 4096

[train_student]
epochs = 1
"""


@dataclass
class Watched:
    """A command's own memory over time, MB."""

    own: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.own)

    def mean_of(self, start: float, stop: float) -> float:
        """Mean over a part of the time; the whole time is 0 to 1."""
        count = len(self.own)
        return statistics.fmean(self.own[int(start * count) : int(stop * count)])


def watch(*arguments: str) -> Watched:
    """Run a heartcut command and read its memory fifty times a second."""
    watched, started = Watched(), time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments], stdout=output, stderr=output
        )
        looking = threading.Thread(target=_look, args=(process, watched))
        looking.start()
        process.wait()
        looking.join()
        output.seek(0)
        if process.returncode:
            sys.exit(f"heartcut {' '.join(arguments)} failed:\n{output.read().decode()}")
    watched.seconds = time.monotonic() - started
    return watched


def _look(process: subprocess.Popen[bytes], watched: Watched) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = [
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("RssAnon")
        ]
        if lines:
            watched.own.append(int(lines[0].split()[1]) / 1e3)
        time.sleep(0.02)


def write_images(folder: Path, *, count: int) -> None:
    """Write small images of ten classes, a tenth of them with a wrong label, and test images."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("test", count // 10)):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
        for index in range(number):
            label = index % CLASSES
            pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            shown = generator.integers(CLASSES) if index % 100 < CLASSES else label
            pixels[:, shown % 8, shown // 8] += 100
            Image.fromarray(pixels).save(folder / split / str(label) / f"{index}.bmp")


def stages_at(size: int, folder: Path) -> dict[str, Watched]:
    write_images(folder / "images", count=size)
    config = folder / "config.toml"
    config.write_text(CONFIG.format(images=folder / "images"), encoding="utf-8")
    return {
        stage: watch(stage, str(config), "--set", f"workspace={folder / 'work'}")
        for stage in STAGES
    }


def show_sizes(sizes: list[int], found: dict[int, dict[str, Watched]]) -> bool:
    """Print the peaks at all sizes, and the memory for each further image."""
    print(f"\npeak of own memory, MB\n{machine()}\n")
    heads = "".join(f"{f'{size:,} images':>18}" for size in sizes)
    print(f"{'':16}{heads} {'bytes an image':>16} {'at most':>8}")
    is_good = True
    for stage in STAGES:
        peaks = [found[size][stage].peak for size in sizes]
        slope = float(np.polyfit(sizes, peaks, 1)[0]) * 1e6
        is_good &= slope <= MOST_BYTES_AN_IMAGE
        row = "".join(f"{peak:>18,.0f}" for peak in peaks)
        print(f"{stage:16}{row} {slope:>16,.0f} {MOST_BYTES_AN_IMAGE:>8,}")
    return is_good


def show_epochs(epochs: int, folder: Path) -> bool:
    """Compare the memory of a long training in its second fifth and in its last one.

    It needs enough images that the first fifth is longer than the start of the process.
    """
    workspace = ["--set", f"workspace={folder / 'work'}"]
    long = ["--set", f"train_student.epochs={epochs}"]
    found = watch("train-student", str(folder / "config.toml"), *workspace, *long)
    early, late = found.mean_of(0.2, 0.4), found.mean_of(0.8, 1.0)
    growth = late / early - 1.0
    print(
        f"\n{epochs} epochs in {found.seconds:,.0f} s: {early:,.0f} MB in the second fifth, "
        f"{late:,.0f} MB in the last one, growth {100 * growth:.2f} % (expected at most "
        f"{100 * MOST_GROWTH:.0f} %)"
    )
    return growth <= MOST_GROWTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--epochs", type=int, default=50)
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        found = {size: stages_at(size, Path(folder) / str(size)) for size in arguments.sizes}
        is_good = show_sizes(arguments.sizes, found)
        is_good &= show_epochs(arguments.epochs, Path(folder) / str(min(arguments.sizes)))
    line = {
        "claim": "memory, MB",
        "machine": machine(),
        "peaks": {
            size: {stage: round(watched.peak, 1) for stage, watched in stages.items()}
            for size, stages in found.items()
        },
    }
    print(json.dumps(line))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
