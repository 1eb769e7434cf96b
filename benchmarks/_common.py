"""What the benchmarks share: synthetic CIFAR-size data, interleaved timing, one way to report."""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.artefacts import dataset as dataset_format
from pipeline.artefacts.dataset import Beton, Samples
from pipeline.data.betons import write_beton
from pipeline.provenance import pixel_key
from pipeline.runtime import num_cores, versions


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A rate, over several rounds of one process."""

    name: str
    per_second: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.per_second)

    @property
    def spread(self) -> str:
        return f"{min(self.per_second):,.0f} - {max(self.per_second):,.0f}"


def interleaved(contestants: dict[str, Callable[[], float]], *, rounds: int) -> list[Measured]:
    """Rates of all contestants, taken in turn, after one round that is not counted.

    A contestant runs once and returns its images per second; taking turns lets a ratio hold while
    the machine's speed drifts.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            rate = run()
            if number:
                rates[name].append(rate)
    return [Measured(name=name, per_second=values) for name, values in rates.items()]


def report(claim: str, measured: list[Measured], *, baseline: str, target: float | None) -> None:
    """Print hardware, a table, and one line of JSON."""
    base = next(m for m in measured if m.name == baseline)
    print(f"\n{claim}\n{machine()}\n")
    print(f"{'':32} {'images/s, median':>18} {'min - max':>22} {'n':>3} {'ratio, median':>14}")
    ratios = {}
    for entry in measured:
        pairs = zip(entry.per_second, base.per_second, strict=True)
        ratios[entry.name] = statistics.median(own / other for own, other in pairs)
        print(
            f"{entry.name:32} {entry.median:>18,.0f} {entry.spread:>22} "
            f"{len(entry.per_second):>3} {ratios[entry.name]:>14.3f}"
        )
    if target is not None:
        print(f"target: {target}")
    line = {
        "claim": claim,
        "machine": machine(),
        "versions": versions(),
        "rounds": len(base.per_second),
        "images_per_second": {m.name: m.per_second for m in measured},
        "median_ratio": ratios,
        "target": target,
    }
    print(json.dumps(line))


def machine() -> str:
    """Processor or accelerator, cores, versions."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else platform.processor()
    python = sys.version.split()[0]
    return f"{processor}, {num_cores()} cores, Python {python}, torch {torch.__version__}"


def synthetic_beton(folder: Path, *, num_samples: int, num_classes: int, side: int = 32) -> Beton:
    """A beton of random pixels: the loader's work does not depend on what is on the images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_samples, side, side, 3), dtype=np.uint8)
    labels = generator.integers(0, num_classes, num_samples)
    keys = np.frombuffer(b"".join(pixel_key(image) for image in images), np.uint8).reshape(-1, 16)
    samples = Samples(keys=keys, labels=labels, pixels=keys)
    path = dataset_format.beton_path(folder, "train")
    pairs = ((image, int(label)) for image, label in zip(images, labels, strict=True))
    write_beton(path, pairs, num_samples=num_samples)
    record = dataset_format.split_record(folder, "train", samples, num_classes=num_classes)
    return Beton(path=path, samples=samples, record=record)
