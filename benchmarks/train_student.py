"""Claim: a step of train-student costs what the same step on resident tensors costs (>= 0.90).

The bare step has its batches normalised and in memory, and the same network, precision, three-term
loss and optimiser: no loader, no augmentation, no gather.

    python benchmarks/train_student.py [--arch resnet8a] [--batch 256] [--rounds 9]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import interleaved, report, synthetic_beton

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import Batch, BatchLoader, Supervision
from pipeline.data.views import ViewSpec
from pipeline.models.zoo import build
from pipeline.normalisation import Normaliser
from pipeline.optimisation import make_optimizer, make_schedule
from pipeline.runtime import Runtime, resolve_runtime
from pipeline.student_loss import DistillationLoss, Weights
from pipeline.training import EpochSize, Learner, Totals, outputs_of

CLASSES = 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Contestant:
    """A network with its own optimiser; both sides of the ratio train alike."""

    def __init__(self, arch: str, runtime: Runtime) -> None:
        torch.manual_seed(0)
        self.runtime = runtime
        self.model = build(arch, num_classes=CLASSES).to(runtime.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = DistillationLoss("kd", weights=Weights(ce=0.1, kd=0.9), temperature=4.0)
        self.normalise = Normaliser(mean=MEAN, std=STD, device=runtime.device)
        self.optimizer = make_optimizer(
            [self.model], kind="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.schedule = make_schedule(
            self.optimizer,
            kind="constant",
            epochs=1,
            steps_per_epoch=1,
            warmup=0.3,
            milestones=(),
            gamma=0.1,
        )
        self.learner = Learner(
            self.model,
            self.loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            normalise=self.normalise,
            runtime=runtime,
        )

    def stage_epoch(self, loader: BatchLoader, epoch: int, *, batch_size: int) -> int:
        """What train-student does."""
        metrics = self.learner.epoch(
            loader.epoch(epoch),
            Totals(self.runtime.device),
            size=EpochSize(num_samples=loader.num_samples, batch_size=batch_size),
        )
        return metrics.num_samples

    def bare_epoch(self, batches: list[tuple[torch.Tensor, Batch]]) -> int:
        """The limit: batches that lie ready."""
        self.model.train()
        for images, batch in batches:
            with self.runtime.autocast():
                outputs = outputs_of(self.model, images)
            loss = self.loss(outputs, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        return sum(len(batch) for _, batch in batches)


def resident(loader: BatchLoader, normalise: Normaliser) -> list[tuple[torch.Tensor, Batch]]:
    """All batches of an epoch, normalised, in memory of their own."""
    return [
        (
            normalise(batch.images),
            Batch(
                images=batch.images[:0],
                labels=batch.labels.clone(),
                indices=batch.indices.clone(),
                soft_labels=None if batch.soft_labels is None else batch.soft_labels.clone(),
                selected=None if batch.selected is None else batch.selected.clone(),
            ),
        )
        for batch in loader.epoch(0)
    ]


def timed(run: Callable[[], int]) -> Callable[[], float]:
    def rate() -> float:
        started = time.perf_counter()
        count = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return count / (time.perf_counter() - started)

    return rate


def supervision_of(beton: Beton, views: ViewSpec) -> Supervision:
    generator = np.random.default_rng(1)
    probs = generator.dirichlet(np.ones(CLASSES), beton.num_samples).astype(np.float16)
    return Supervision(
        soft_labels=[probs] * views.count,
        selected=generator.random(beton.num_samples) < 0.85,
        labels=beton.samples.labels,
        by_view=True,
        num_classes=CLASSES,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet8a")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=10_240)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    runtime = resolve_runtime("auto")
    views = ViewSpec(padding=4, flip=True, count=4)
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
        stage = Contestant(arguments.arch, runtime)
        bare = Contestant(arguments.arch, runtime)
        batches = resident(loader, bare.normalise)
        epoch = iter(range(10**9))
        measured = interleaved(
            {
                "train-student": timed(
                    lambda: stage.stage_epoch(loader, next(epoch), batch_size=arguments.batch)
                ),
                "bare step, resident tensors": timed(lambda: bare.bare_epoch(batches)),
            },
            rounds=arguments.rounds,
        )
    report(
        f"student step, {arguments.arch}, batch {arguments.batch}, 32 x 32, {runtime.description}",
        measured,
        baseline="bare step, resident tensors",
        target=0.90,
    )


if __name__ == "__main__":
    main()
