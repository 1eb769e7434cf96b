"""Claims: a step of train-student is as fast as the same step on tensors in memory (>= 0.97), and
several times as fast as with the teacher in the loop.

Four ways to take the same steps, in turn:

- heartcut: train-student's loop, from betons, with views and cached soft labels;
- resident: the limit, the same step on normalised batches and soft labels in memory;
- online: train-student --online, the same loop with a forward pass of the teacher per batch;
- field: distillation as in common repositories: torch's DataLoader with one worker for
  each core, PIL transforms, float32, NCHW, the teacher in the loop, metrics read after every step.

    python benchmarks/student_step.py [--teacher resnet32x4] [--student resnet8x4] [--batch 64]
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from _common import Target, interleaved, report, synthetic_beton, timed
from _students import (
    FieldStudent,
    Student,
    endless,
    field_loader,
    online_teacher,
    resident,
    supervision_of,
)
from torch import Tensor

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader
from pipeline.data.supervision import Batch
from pipeline.data.views import ViewSpec
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.training.learner import EpochSize

TARGETS = {  # ratios to the field's loop and to heartcut's online mode
    ("resnet32x4", "resnet8x4"): (5.0, 2.2),
    ("resnet56", "resnet20"): (3.4, 1.6),
}
VIEWS = ViewSpec(padding=4, flip=True, count=4)


def endless_field(beton: Beton, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of torch's DataLoader, epoch after epoch."""
    loader = field_loader(beton, batch_size=batch_size)
    while True:
        yield from loader


class Steps:
    """The four ways, each with endless batches of its own."""

    def __init__(self, settings: argparse.Namespace, beton: Beton, runtime: Runtime) -> None:
        self._batch, self._steps = settings.batch, settings.steps
        num_classes = settings.classes
        supervision = supervision_of(beton, VIEWS, num_classes=num_classes)
        self._loaders = [
            BatchLoader(
                beton,
                batch_size=settings.batch,
                view_spec=VIEWS,
                order="random",
                workers=runtime.loader_workers(0),
                supervision=supervision,
                device=runtime.device,
            )
            for _ in range(2)
        ]
        self._offline, self._online = (
            endless(loader, batch_size=settings.batch) for loader in self._loaders
        )
        self._students = [
            Student(settings.student, runtime, num_classes=num_classes) for _ in range(3)
        ]
        self._teacher = online_teacher(settings.teacher, runtime, num_classes=num_classes)
        self._field = FieldStudent(
            settings.teacher, settings.student, runtime.device, num_classes=num_classes
        )
        self._field_batches = endless_field(beton, batch_size=settings.batch)
        normalise = self._students[1].normalise
        self._ready = resident(islice(self._offline, settings.steps), normalise)

    @property
    def _size(self) -> EpochSize:
        return EpochSize(num_samples=self._steps * self._batch, batch_size=self._batch)

    def heartcut(self) -> int:
        self._students[0].train(islice(self._offline, self._steps), size=self._size)
        return self._size.num_samples

    def resident(self) -> int:
        self._students[1].train_bare(self._ready)
        return self._size.num_samples

    def online(self) -> int:
        batches: Iterator[Batch] = islice(self._online, self._steps)
        self._students[2].train(self._teacher.taught(batch for batch in batches), size=self._size)
        return self._size.num_samples

    def field(self) -> int:
        self._field.train(islice(self._field_batches, self._steps))
        return self._size.num_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64, help="64: the recipes of the field")
    parser.add_argument("--steps", type=int, default=20, help="of each round")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    settings = parser.parse_args()
    runtime = resolve_runtime("auto")
    with tempfile.TemporaryDirectory() as folder:
        beton = synthetic_beton(
            Path(folder), num_samples=settings.samples, num_classes=settings.classes
        )
        steps = Steps(settings, beton, runtime)
        measured = interleaved(
            {
                "resident": timed(steps.resident),
                "heartcut": timed(steps.heartcut),
                "online": timed(steps.online),
                "field": timed(steps.field),
            },
            rounds=settings.rounds,
        )
    against_field, against_online = TARGETS.get((settings.teacher, settings.student), (None, None))
    report(
        f"student step, {settings.teacher} to {settings.student}, batch {settings.batch}, 32 x 32, "
        f"{settings.classes} classes, {runtime.description}",
        measured,
        targets=[
            Target(name="heartcut", baseline="resident", ratio=0.97),
            Target(name="heartcut", baseline="field", ratio=against_field),
            Target(name="heartcut", baseline="online", ratio=against_online),
        ],
    )


if __name__ == "__main__":
    main()
