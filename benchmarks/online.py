"""Claim: training from a cache costs a fraction of training with the teacher in the loop.

The same network, loader, views, loss and optimiser; once the soft labels are gathered from tables,
once a teacher says them of the very images of the batch.

    python benchmarks/online.py [--teacher resnet56a] [--student resnet20a] [--rounds 5]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from _common import interleaved, report, synthetic_beton
from train_student import CLASSES, MEAN, STD, Contestant, supervision_of

from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.models.zoo import build
from pipeline.online_teacher import OnlineTeacher
from pipeline.runtime import Runtime, resolve_runtime
from pipeline.teacher_pass import Teacher
from pipeline.training import EpochSize, Totals


def online_teacher(arch: str, runtime: Runtime) -> OnlineTeacher:
    """A frozen network with fresh weights: what it says does not change what it costs."""
    torch.manual_seed(1)
    model = build(arch, num_classes=CLASSES).eval().requires_grad_(False).to(runtime.device)
    teacher = Teacher(
        model=model.to(memory_format=torch.channels_last),
        digest="0" * 64,
        mean=MEAN,
        std=STD,
        target_in_sample=False,
        description=arch,
    )
    return OnlineTeacher(
        teacher=teacher,
        runtime=runtime,
        revision="none",
        eta=0.8,
        revise_at=4.0,
        standardise=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="resnet56a")
    parser.add_argument("--student", default="resnet20a")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=5_120)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runtime = resolve_runtime("auto")
    views = ViewSpec(padding=4, flip=True, count=4)
    teacher = online_teacher(arguments.teacher, runtime)
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(Path(folder), num_samples=arguments.samples, num_classes=CLASSES)
        loader = BatchLoader(
            beton,
            batch_size=arguments.batch,
            view_spec=views,
            order="random",
            workers=runtime.loader_workers(0),
            supervision=supervision_of(beton, views),
        )
        size = EpochSize(num_samples=arguments.samples, batch_size=arguments.batch)
        students = {way: Contestant(arguments.student, runtime) for way in ("offline", "online")}
        epochs = dict.fromkeys(students, 0)

        def rate(way: str) -> float:
            batches = loader.epoch(epochs[way])
            epochs[way] += 1
            started = time.perf_counter()
            students[way].learner.epoch(
                batches if way == "offline" else teacher.taught(batches),
                Totals(runtime.device),
                size=size,
            )
            return arguments.samples / (time.perf_counter() - started)

        measured = interleaved(
            {
                "offline, from the cache": lambda: rate("offline"),
                "online, teacher in the loop": lambda: rate("online"),
            },
            rounds=arguments.rounds,
        )
    report(
        f"student step, {arguments.teacher} to {arguments.student}, batch {arguments.batch}, "
        f"32 x 32, {runtime.description}",
        measured,
        baseline="online, teacher in the loop",
        target=1.6,
    )


if __name__ == "__main__":
    main()
