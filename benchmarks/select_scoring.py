"""Claims: scoring in `select` costs little more than its matrix products, and its memory grows by a
few numbers for each sample.

Synthetic features (`_head_data`). Time: everything that `select` computes by default (heads,
scores, standard errors, label issues, diagnostics) and its matrix products alone, on resident
operands, in turn. Memory: the same from memory-mapped files, one process for each size. The measure
is the peak of the process's own memory (RssAnon), because mapped files are in the page cache.

    python benchmarks/select_scoring.py [--rounds 3] [--rows 50000] [--classes 100] [--features 256]
    python benchmarks/select_scoring.py --rows 3000 --classes 1000 --features 1280 --seconds
    python benchmarks/select_scoring.py --memory [--sizes 50000 100000 200000]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from _common import machine
from _head_data import FeatureRows, LabelRows, Synthetic, synthetic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.influence.inputs import InfluenceSettings, ScoredRows, Target, Targets
from pipeline.influence.scoring import score_influence
from pipeline.runtime.device import num_cores, versions

RATIO = 3.0
BYTES_A_SAMPLE = 1_000
SUBSAMPLE = 20_000
SETTINGS = {
    "l2": None,
    "kd_weight": 0.9,
    "temperature": 1.0,
    "distilled": 1.0,
    "rounds": 0,
    "hessian_subsample": None,
    "solver": "exact",
    "label_issues": True,
    "diagnostics": True,
    "param_change": False,
    "seed": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=5_000)
    parser.add_argument("--cross-fit", action="store_true", help="five targets instead of one")
    parser.add_argument("--seconds", action="store_true", help="time alone, without the products")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(num_cores())
    if options.memory:
        memory(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.one:
            print(json.dumps(watched(options, Path(folder))))
        else:
            speed(options, Path(folder))


def made(options: argparse.Namespace, folder: Path) -> Synthetic:
    return synthetic(
        folder,
        num_samples=options.rows + options.held_out,
        num_classes=options.classes,
        num_features=options.features,
    )


def all_scores(
    data: Synthetic, num_rows: int, *, is_crossed: bool = False, **changes: object
) -> Callable[[], object]:
    """A function that computes the scores of the first rows, with the others or folds as target."""
    features, held_out = data.features[:num_rows], data.features[num_rows:]
    target = Target(
        features=FeatureRows(values=held_out),
        labels=data.labels[num_rows:],
        groups=torch.arange(len(held_out)) % 10,
    )
    scored = ScoredRows(
        features=FeatureRows(values=features),
        soft_labels=LabelRows(values=data.logits[:num_rows]),
        labels=data.labels[:num_rows],
        start=data.head.double(),
        clean=FeatureRows(values=features),
        folds=torch.arange(num_rows) % 5,
    )
    settings = InfluenceSettings(**(SETTINGS | changes))
    targets = Targets(target=target, choosing=target)
    if is_crossed:
        own = Target(
            features=scored.clean, labels=scored.labels, groups=torch.arange(num_rows) // 5 % 10
        )
        targets = Targets(target=own, folds=scored.folds, choosing=target)
    return lambda: score_influence(scored, targets, settings)


class Products(TorchDispatchMode):
    """Counts matrix products by their operands' shapes, strides and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[object, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            left, right = args
            signature = (*_layout(left), *_layout(right), left.dtype)
            self.counts[signature] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """Time of all counted products, repeated on resident operands."""
        return sum(count * _seconds_of(signature) for signature, count in self.counts.items())


def _layout(operand: Tensor) -> tuple[tuple[int, ...], bool]:
    """Shape, and True for the transpose of a contiguous operand."""
    return tuple(operand.shape), not operand.is_contiguous()


def _seconds_of(signature: tuple[object, ...]) -> float:
    """Time of one product, the median of several."""
    left_shape, left_turned, right_shape, right_turned, dtype = signature
    left, right = (
        torch.rand(shape[::-1], dtype=dtype).T if turned else torch.rand(shape, dtype=dtype)
        for shape, turned in ((left_shape, left_turned), (right_shape, right_turned))
    )
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Time scoring and its products in turn, after a run that counts the products."""
    run = all_scores(made(options, folder), options.rows, is_crossed=options.cross_fit)
    if options.seconds:
        for _ in range(options.rounds):
            start = time.perf_counter()
            run()
            print(f"{time.perf_counter() - start:.1f} s for all of select's scoring", flush=True)
        print(machine())
        return
    with Products() as products:
        run()
    seconds: dict[str, list[float]] = {"all of select's scoring": [], "its products alone": []}
    for _ in range(options.rounds):
        start = time.perf_counter()
        run()
        seconds["all of select's scoring"].append(time.perf_counter() - start)
        seconds["its products alone"].append(products.seconds())
    show_speed(seconds)


def show_speed(seconds: dict[str, list[float]]) -> None:
    print(f"\nselect's scoring beside its own matrix products\n{machine()}\n")
    print(f"{'':28} {'s, median':>10} {'min - max':>19} {'n':>3}")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} - {max(values):.2f}"
        print(f"{name:28} {statistics.median(values):>10.2f} {spread:>19} {len(values):>3}")
    own, bare = seconds.values()
    ratios = [one / other for one, other in zip(own, bare, strict=True)]
    median = statistics.median(ratios)
    print(f"ratio {median:.2f} ({min(ratios):.2f} - {max(ratios):.2f}), target at most {RATIO}")
    line = {"machine": machine(), "versions": versions(), "seconds": seconds, "ratios": ratios}
    print(json.dumps({"claim": "select / its products", **line}), flush=True)


def memory(options: argparse.Namespace) -> None:
    """Measure one process for each size, so that its peak is its own."""
    print(f"\nmemory of select's scoring, {options.classes} classes, {options.features} features")
    print(f"{machine()}\n\n{'samples':>12} {'own peak, MB':>14} {'RSS peak, MB':>14} {'s':>8}")
    found = []
    for size in options.sizes:
        measured = _in_a_process(options, size)
        found.append(measured)
        print(
            f"{size:>12,} {measured['own_mb']:>14,.0f} {measured['rss_mb']:>14,.0f} "
            f"{measured['seconds']:>8.1f}",
            flush=True,
        )
    growth = (found[-1]["own_mb"] - found[0]["own_mb"]) * 2**20
    bytes_a_sample = growth / (options.sizes[-1] - options.sizes[0])
    print(f"grows by {bytes_a_sample:,.0f} B a sample, target at most {BYTES_A_SAMPLE:,}")
    line = {"machine": machine(), "versions": versions(), "sizes": options.sizes, "found": found}
    print(json.dumps({"claim": "memory", "bytes_a_sample": bytes_a_sample, **line}), flush=True)


def _in_a_process(options: argparse.Namespace, size: int) -> dict[str, float]:
    shape = ["--rows", size, "--classes", options.classes, "--features", options.features]
    command = [sys.executable, __file__, "--one", *map(str, shape)]
    if options.folder is not None:
        command += ["--folder", str(options.folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def watched(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Score from memory-mapped files, with the same number of curvature samples at every size."""
    data = made(options, folder)
    run = all_scores(data, options.rows, hessian_subsample=SUBSAMPLE, l2=1e-4)
    peak, done = [0.0], threading.Event()
    looking = threading.Thread(target=_look, args=(peak, done))
    looking.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    looking.join()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"own_mb": peak[0], "rss_mb": rss, "seconds": seconds}


def _look(peak: list[float], done: threading.Event) -> None:
    """Keep the largest RssAnon of this process, MB."""
    while not done.wait(0.02):
        for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]) / 2**10)


if __name__ == "__main__":
    main()
