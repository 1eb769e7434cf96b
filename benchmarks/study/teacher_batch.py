"""Claim: the batch that `cache-teacher` chooses costs a CPU less time and memory than 512 images.

Every case runs in a process of its own on one thread, the cases of a round one after the other. The
time is processor time, so other work on the machine hardly changes it. The memory is the growth of
the resident set to its peak.

    python benchmarks/study/teacher_batch.py [--rounds 5]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.models.zoo import build
from pipeline.runtime.device import processor, resolve_runtime
from pipeline.runtime.memory import reuse_freed_memory
from pipeline.teacher.batches import fitting_batch
from pipeline.teacher.frozen import teacher_features

CASES = (
    ("torchvision:resnet50", 224, 512, False),
    ("torchvision:resnet50", 224, 64, False),
    ("torchvision:resnet50", 224, 16, False),
    ("torchvision:resnet50", 224, 16, True),
    ("torchvision:vit_b_16", 224, 64, False),
    ("torchvision:vit_b_16", 224, 16, True),
    ("resnet56", 32, 512, False),
    ("resnet56", 32, 512, True),
)
"""Network, side of an image, batch, and whether freed memory is reused."""
PIXELS = 1 << 21
"""Pixels that a case runs on, at least; a whole batch in any case."""


def run(arch: str, side: int, size: int, reuses: bool) -> dict[str, float]:
    """Processor time, its share in the system, and the growth of memory for one case."""
    if reuses:
        reuse_freed_memory()
    runtime = resolve_runtime("auto")
    torch.manual_seed(0)
    model = runtime.place(build(arch, num_classes=100).eval().requires_grad_(False))
    normalise = Normaliser(mean=(0.5,) * 3, std=(0.25,) * 3, device=runtime.device)
    images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    nothing = torch.zeros(size, dtype=torch.int64)
    batch = Batch(images=images, labels=nothing, indices=nothing, soft_labels=None, selected=None)
    rounds = -(-PIXELS // (size * side * side))
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with torch.inference_mode():
        for _ in range(rounds):
            teacher_features(model, normalise, batch, runtime=runtime)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    passed = after.ru_utime - before.ru_utime + system
    return {
        "ms": 1000 * passed / (rounds * size),
        "system": system / passed,
        "mb": (after.ru_maxrss - before.ru_maxrss) / 1e3,
        "images_per_second": rounds * size / wall,
        "chosen": fitting_batch(model, (side, side), runtime),
    }


def measured(case: tuple[str, int, int, bool]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", type=json.loads)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(run(*arguments.case)))
        return
    found = [[measured(case) for case in CASES] for _ in range(arguments.rounds)]
    print(f"{processor()}, torch {torch.__version__}, one thread, n = {arguments.rounds}\n")
    for case, own in zip(CASES, zip(*found, strict=True), strict=True):
        times = sorted(one["ms"] for one in own)
        arch, side, size, reuses = case
        print(
            f"{arch:<22} {side:>3} px, batch {size:>3}{' reused' if reuses else '':<7} "
            f"(chosen: {own[0]['chosen']:.0f}): "
            f"{statistics.median(times):.2f} ms an image ({times[0]:.2f} - {times[-1]:.2f}), "
            f"{100 * statistics.median(one['system'] for one in own):.0f} % of it in the system, "
            f"{statistics.median(one['mb'] for one in own):,.0f} MB"
        )
    print(json.dumps({"cases": CASES, "found": found}))


if __name__ == "__main__":
    main()
