"""Shared parts of the benchmarks: synthetic data, interleaved timing, and the report."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.artefacts import dataset as dataset_format
from pipeline.artefacts.dataset import Beton, Samples
from pipeline.data.betons import write_beton
from pipeline.provenance import pixel_key
from pipeline.runtime.device import num_cores, processor, versions

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


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

    A contestant runs once and returns its images per second. Turns make ratios comparable although
    the machine's speed drifts.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            rate = run()
            if number:
                rates[name].append(rate)
    return [Measured(name=name, per_second=values) for name, values in rates.items()]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Wanted speed of a contestant, as a ratio to another one."""

    name: str
    baseline: str
    ratio: float | None
    """None if there is no target."""


def report(claim: str, measured: list[Measured], *, targets: Sequence[Target]) -> None:
    """Print hardware, a table of rates, a table of ratios with their targets, and one line of JSON.

    A ratio is the median over the rounds. In a round, the two sides run one after the other.
    """
    rates = {entry.name: entry.per_second for entry in measured}
    print(f"\n{claim}\n{machine()}\n")
    print(f"{'':36} {'images/s, median':>18} {'min - max':>24} {'n':>3}")
    for entry in measured:
        count = len(entry.per_second)
        print(f"{entry.name:36} {entry.median:>18,.0f} {entry.spread:>24} {count:>3}")
    print(f"\n{'ratio, median (min - max)':73} {'':>20} {'target':>7}")
    ratios = {}
    for target in targets:
        pairs = zip(rates[target.name], rates[target.baseline], strict=True)
        found = [own / other for own, other in pairs]
        name = f"{target.name} / {target.baseline}"
        ratios[name] = {"ratios": found, "median": statistics.median(found), "target": target.ratio}
        spread = f"{statistics.median(found):.3f} ({min(found):.3f} - {max(found):.3f})"
        print(f"{name:69} {spread:>24} {target.ratio or '':>7}")
    line = {
        "claim": claim,
        "machine": machine(),
        "versions": versions(),
        "images_per_second": rates,
        "ratios": ratios,
    }
    print(json.dumps(line), flush=True)


def device_is_done() -> None:
    """Wait until the accelerator has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], int]) -> Callable[[], float]:
    """Return a function that runs ``work`` and gives its images per second.

    ``work`` returns its number of images.
    """

    def rate() -> float:
        started = time.perf_counter()
        count = work()
        device_is_done()
        return count / (time.perf_counter() - started)

    return rate


def machine() -> str:
    """Processor or accelerator, cores, versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    python = sys.version.split()[0]
    return f"{name}, {num_cores()} cores, Python {python}, torch {torch.__version__}"


def synthetic_beton(folder: Path, *, num_samples: int, num_classes: int, side: int = 32) -> Beton:
    """A beton of random pixels: the loader's work does not depend on the pixels."""
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
