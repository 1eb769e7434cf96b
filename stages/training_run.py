"""One training, from loaders to a published run; what students and teachers share."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pipeline.artefacts import run as run_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Cost, Inputs, Run, RunResult
from pipeline.artefacts.store import publish_json, publishing_folder
from pipeline.data.loaders import BatchLoader, Supervision
from pipeline.data.views import ViewSpec
from pipeline.evaluation import Evaluation, agreement, evaluate
from pipeline.models import Classifier
from pipeline.models.checkpoints import save_weights
from pipeline.models.zoo import build
from pipeline.progress import Progress, progress
from pipeline.provenance import Json, file_sha256
from pipeline.runtime import Runtime, resolve_runtime, versions
from pipeline.training import (
    BatchLoss,
    EpochMetrics,
    Normaliser,
    make_optimizer,
    make_schedule,
    train_epoch,
)
from stages.configs import OptimiserConfig

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class TeacherClasses:
    """The teacher's top class in the clean view, to tell how far the student follows it."""

    held_out: Tensor | None
    """(M,) int64, in the order of the held-out rows."""
    test: Tensor | None
    """(K,) int64"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train on what."""

    settings: OptimiserConfig
    identity: Mapping[str, Json]
    """Everything among the settings that the numbers depend on."""
    inputs: Inputs
    dataset: Dataset
    rows: NDArray[np.int64]
    """Sample indices that are trained on."""
    views: ViewSpec
    loss: BatchLoss
    supervision: Supervision | None
    num_distilled: int
    teacher: TeacherClasses


def train(training: Training, path: Path) -> Run:
    """Train, evaluate on the held-out rows every epoch and on the test images once; publish."""
    settings = training.settings
    runtime = resolve_runtime(settings.precision)
    torch.manual_seed(settings.seed)
    model = build(settings.arch, num_classes=training.dataset.num_classes)
    model = model.to(runtime.device).to(memory_format=torch.channels_last)
    with publishing_folder(path) as folder:
        (folder / run_format.SETTINGS).write_text(_as_toml(training.identity))
        trainer = _Trainer(training, model, runtime)
        epochs = trainer.run(folder)
        save_weights(model, folder / run_format.WEIGHTS)
        weights = file_sha256(folder / run_format.WEIGHTS)
        result = _result(training, trainer, epochs, weights=weights)
        publish_json(folder / run_format.RESULT, result.model_dump(mode="json"))
    run = Run.open(path)
    logger.info("%s: %s", path, describe(run.result))
    return run


def describe(result: RunResult) -> str:
    """One line about a run."""
    agrees = result.teacher_agreement_test
    return (
        f"test {100 * result.test_accuracy:.2f} %, held out last "
        f"{100 * result.held_out_accuracy_last:.2f} best {100 * result.held_out_accuracy_best:.2f} "
        f"mean of last {result.mean_of_last} {100 * result.held_out_accuracy_mean_of_last:.2f} %"
        + ("" if agrees is None else f", agrees with the teacher on {100 * agrees:.1f} %")
        + f", {result.cost.seconds:.0f} s"
    )


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    training: EpochMetrics
    held_out: Evaluation
    seconds: float


class _Trainer:
    """A model with its loaders, optimiser and schedule."""

    def __init__(self, training: Training, model: Classifier, runtime: Runtime) -> None:
        settings, dataset = training.settings, training.dataset
        workers = runtime.loader_workers(settings.workers)
        self._training = training
        self._model = model
        self.runtime = runtime
        self._loader = BatchLoader(
            dataset.train,
            batch_size=settings.batch_size,
            view_spec=training.views,
            rows=training.rows,
            order="random",
            seed=settings.seed,
            workers=workers,
            supervision=training.supervision,
        )
        self._held_out = BatchLoader(
            dataset.train,
            batch_size=EVALUATION_BATCH,
            rows=dataset.held_out,
            workers=workers,
        )
        self._test = BatchLoader(dataset.eval, batch_size=EVALUATION_BATCH, workers=workers)
        self._normalise = Normaliser(
            mean=dataset.record.mean, std=dataset.record.std, device=runtime.device
        )

    def run(self, folder: Path) -> list[_Epoch]:
        """Train all epochs; one line of metrics each."""
        settings = self._training.settings
        optimizer = make_optimizer(
            self._model,
            kind=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        schedule = make_schedule(
            optimizer,
            kind=settings.schedule,
            epochs=settings.epochs,
            steps_per_epoch=self._loader.num_batches,
            warmup=settings.warmup,
            milestones=settings.milestones,
            gamma=settings.gamma,
        )
        total = settings.epochs * self._loader.num_samples
        epochs = []
        with progress(f"train {settings.arch}", total=total, unit="images") as bar:
            for number in range(settings.epochs):
                epoch = self._epoch(number, optimizer, schedule, bar)
                run_format.append_metrics(folder, _metrics_line(number, epoch, optimizer))
                epochs.append(epoch)
        return epochs

    def test(self) -> Evaluation:
        """Look at the test images."""
        return evaluate(
            self._model, self._test.view(0), normalise=self._normalise, runtime=self.runtime
        )

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self._model.parameters())

    def _epoch(
        self,
        number: int,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        bar: Progress,
    ) -> _Epoch:
        started = time.monotonic()
        metrics = train_epoch(
            self._model,
            self._loader.epoch(number),
            loss=self._training.loss,
            optimizer=optimizer,
            schedule=schedule,
            normalise=self._normalise,
            runtime=self.runtime,
            on_batch=lambda count: bar.advance(count, note=f"epoch {number + 1}"),
        )
        seconds = time.monotonic() - started
        held_out = evaluate(
            self._model, self._held_out.view(0), normalise=self._normalise, runtime=self.runtime
        )
        return _Epoch(training=metrics, held_out=held_out, seconds=seconds)


def _metrics_line(number: int, epoch: _Epoch, optimizer: torch.optim.Optimizer) -> dict[str, Json]:
    return {
        "epoch": number + 1,
        "training_loss": epoch.training.loss,
        "training_accuracy": epoch.training.accuracy,
        "held_out_accuracy": epoch.held_out.accuracy,
        "held_out_loss": epoch.held_out.loss,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "seconds": epoch.seconds,
        "images_per_second": epoch.training.num_samples / epoch.seconds,
    }


def _result(
    training: Training, trainer: _Trainer, epochs: list[_Epoch], *, weights: str
) -> RunResult:
    settings, dataset = training.settings, training.dataset
    held_out = [epoch.held_out.accuracy for epoch in epochs]
    last_epochs = held_out[-settings.mean_of_last :]
    test = trainer.test()
    seconds = sum(epoch.seconds for epoch in epochs)
    num_images = sum(epoch.training.num_samples for epoch in epochs)
    return RunResult(
        id=run_format.run_id(training.identity, training.inputs),
        weights_sha256=weights,
        arch=settings.arch,
        num_parameters=trainer.num_parameters,
        seed=settings.seed,
        inputs=training.inputs,
        mean=dataset.record.mean,
        std=dataset.record.std,
        held_out=dataset.held_out_digest,
        num_training_samples=len(training.rows),
        held_out_accuracy_last=held_out[-1],
        held_out_accuracy_best=max(held_out),
        best_epoch=1 + held_out.index(max(held_out)),
        held_out_accuracy_mean_of_last=sum(last_epochs) / len(last_epochs),
        mean_of_last=len(last_epochs),
        test_accuracy=test.accuracy,
        test_loss=test.loss,
        test_calibration_error=test.calibration_error,
        teacher_agreement_held_out=_agreement(epochs[-1].held_out, training.teacher.held_out),
        teacher_agreement_test=_agreement(test, training.teacher.test),
        num_distilled=training.num_distilled,
        cost=Cost(
            seconds=seconds,
            training_images_per_second=num_images / seconds,
            teacher_forwards_saved=num_images if training.supervision is not None else 0,
            device=trainer.runtime.description,
        ),
        versions=versions(),
    )


def _agreement(evaluation: Evaluation, teacher: Tensor | None) -> float | None:
    if teacher is None or bool((teacher < 0).all()):
        return None
    return agreement(evaluation.predicted, teacher)


def _as_toml(settings: Mapping[str, Json]) -> str:
    """Flat settings as TOML; JSON's numbers, strings, booleans and lists are TOML's too."""
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in settings.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    tables = [
        f"\n[{name}]\n{_as_toml(value)}".rstrip()
        for name, value in settings.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join(lines + tables) + "\n"
