"""Claim: heartcut loads random resized crops of large JPEGs faster than torch's DataLoader.

python benchmarks/large_images.py [--images 20000] [--rounds 5] [--folder work/large-images]

It makes JPEGs of 300 to 600 pixels in 1,000 classes, prepares them unchanged, and reads epochs in
turn: heartcut's loader with rrc-flip views of 224 pixels, and a DataLoader of the same files with
torchvision's RandomResizedCrop and flip, both with the same number of workers. `--stages` then runs
all stages on the same files, with small networks in two processes, and recomputes the teacher's
outputs on views of the loader.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import Target, interleaved, report, timed
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import v2

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.data.resized_crops import ResizedCropSpec
from pipeline.runtime.device import num_cores
from pipeline.runtime.read_ahead import read_ahead
from stages import prepare
from stages.config.file import load_config

BATCH = 256
SIDES = (300, 600)
STAGES = ("train-teacher", "cache-teacher", "select", "train-student")
CONFIG = """
workspace = "{folder}/work"

[prepare]
source = "folder"
path = "{folder}/images"
store = "jpeg"
held_out_fraction = 0.05

[views]
kind = "rrc-flip"
size = {size}
count = 1

[train_teacher]
arch = "torchvision:resnet18"
epochs = 1
batch_size = 64
lr = 0.01
fraction = 0.1
resolutions = [[1, {small}]]

[cache_teacher]
batch_size = 64
features = false

[select]
revision = "all"
strategy = "all"

[train_student]
arch = "torchvision:resnet18"
epochs = 1
batch_size = 64
lr = 0.01
resolutions = [[1, {small}]]
"""
OURS, FIELD = "heartcut, rrc-flip, JPEG beton", "DataLoader, PIL, RandomResizedCrop"


class Textures:
    """Images with the spectrum, colours and edges of photographs, cut from a few sheets."""

    def __init__(self, *, sheets: int = 8, side: int = 1400) -> None:
        generator = np.random.default_rng(0)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side)[: side // 2]))
        falling = 1.0 / np.maximum(frequency.T, 1.0 / side) ** 1.3  # a little above 1 / f
        self._sheets = []
        for _ in range(sheets):
            phases = np.exp(2j * np.pi * generator.random(falling.shape))
            sheet = np.fft.irfft2(falling * phases, s=(side, side))
            self._sheets.append((sheet / sheet.std()).astype(np.float32))
        self._side = side

    def image(self, number: int) -> Image.Image:
        """Image of a number; the same number gives the same image."""
        generator = np.random.default_rng(number)
        height, width = generator.integers(SIDES[0], SIDES[1] + 1, 2)
        light, first, second = (self._cut(generator, height, width) for _ in range(3))
        edge = self._cut(generator, height, width) > 0.3
        pixels = np.stack([light + 0.3 * first, light, light + 0.3 * second], axis=2)
        pixels = 110.0 + 42.0 * pixels + 40.0 * edge[:, :, None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _cut(self, generator: np.random.Generator, height: int, width: int) -> np.ndarray:
        sheet = self._sheets[int(generator.integers(len(self._sheets)))]
        top = int(generator.integers(self._side - height))
        left = int(generator.integers(self._side - width))
        return sheet[top : top + height, left : left + width]


def write_images(folder: Path, *, num_images: int, num_classes: int) -> None:
    """Write training images for the classes in turn, and one test image of each class."""
    textures = Textures()

    def write(number: int) -> None:
        split = "train" if number < num_images else "test"
        path = folder / split / f"class{number % num_classes:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        textures.image(number).save(path, quality=90)

    for _ in read_ahead(
        write, range(num_images + num_classes), threads=num_cores(), ahead=4 * num_cores()
    ):
        pass


def configuration(folder: Path, *, size: int) -> Path:
    """Write a configuration of all stages, with networks small enough for a CPU."""
    path = folder / "config.toml"
    path.write_text(CONFIG.format(folder=folder, size=size, small=size // 2), encoding="utf-8")
    return path


def our_epochs(dataset: Dataset, rows: np.ndarray, *, size: int) -> Callable[[], float]:
    spec = ResizedCropSpec(size=size, count=8)
    loader = BatchLoader(dataset.train, batch_size=BATCH, view_spec=spec, rows=rows, order="random")
    epoch = 0

    def read() -> int:
        nonlocal epoch
        epoch += 1
        return sum(len(batch) for batch in loader.epoch(epoch))

    return timed(read)


def field_epochs(folder: Path, rows: np.ndarray, *, size: int) -> Callable[[], float]:
    transform = v2.Compose(
        [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )
    images = datasets.ImageFolder(folder / "images" / "train", transform)
    loader = DataLoader(
        Subset(images, rows.tolist()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_cores(),
        persistent_workers=True,
    )

    return timed(lambda: sum(len(labels) for _, labels in loader))


def run_stages(config: Path, *, processes: int) -> None:
    """Run all stages by command, then recompute the teacher on views of the loader."""
    launched = ["launch", "--processes", str(processes)]
    print(f"\nstages in {processes} processes, by torchrun")
    for stage in STAGES:
        command(f"{stage:16}", *launched, stage, str(config))
    print(command("replay check", "cache", "verify", str(config), "--recompute", "1%"))


def command(name: str, *arguments: str) -> str:
    """Run a heartcut command, print its seconds, and return its output.

    Raises:
        SystemExit: if it fails.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"heartcut {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    print(f"{name:16} {time.perf_counter() - started:>8.1f} s")
    return done.stdout.strip()


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    images = folder / "images"
    if not images.exists():
        started = time.perf_counter()
        partial = folder / "images.partial"
        write_images(partial, num_images=arguments.images, num_classes=arguments.classes)
        partial.rename(images)
        print(f"{'made images':16} {time.perf_counter() - started:>8.1f} s")
    config = configuration(folder, size=arguments.stage_size)
    started = time.perf_counter()
    dataset = prepare.execute(load_config(config, overrides=[]))
    num_bytes = dataset.train.path.stat().st_size
    print(
        f"{'prepare':16} {time.perf_counter() - started:>8.1f} s, train.beton of "
        f"{num_bytes / 1e6:,.0f} MB, {num_bytes / dataset.train.num_samples / 1e3:.0f} kB per image"
    )
    rows = np.sort(np.random.default_rng(1).permutation(len(dataset.training))[: arguments.read])
    measured = interleaved(
        {
            OURS: our_epochs(dataset, dataset.training[rows], size=arguments.size),
            FIELD: field_epochs(folder, rows, size=arguments.size),
        },
        rounds=arguments.rounds,
    )
    report(
        f"loader, JPEGs of {SIDES[0]} to {SIDES[1]} px to {arguments.size} x {arguments.size}, "
        f"batch {BATCH}, random order, {len(rows):,} of {len(dataset.training):,} images, "
        f"{num_cores()} workers each",
        measured,
        targets=[Target(name=OURS, baseline=FIELD, ratio=None)],
    )
    if arguments.stages:
        run_stages(config, processes=arguments.processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--read", type=int, default=2000, help="number of images read in a round")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder that keeps the images for later runs")
    parser.add_argument("--stages", action="store_true", help="run all stages afterwards")
    parser.add_argument(
        "--processes", type=int, default=2, help="number of processes of each stage"
    )
    parser.add_argument(
        "--stage-size", type=int, default=64, help="side of the stages' views in pixels"
    )
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        measure(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
