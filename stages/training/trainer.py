"""A training in progress: its inputs, epochs, evaluations and checkpoints, and resuming."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import HELD_OUT, TEST
from pipeline.artefacts.run import Inputs
from pipeline.artefacts.unfinished_run import UnfinishedRun
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch, Supervision
from pipeline.data.view_specs import Views
from pipeline.methods.metrics import Evaluation
from pipeline.models.networks.classifier import Classifier
from pipeline.provenance import Json
from pipeline.runtime.device import Runtime
from pipeline.runtime.progress import Progress, progress
from pipeline.runtime.rank_states import (
    all_states,
    own_state,
    random_state,
    random_stream,
    set_random_state,
)
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.runtime.stopping import SharedStopRequest, catching_stop_signals
from pipeline.teacher.online import OnlineTeacher
from pipeline.training.evaluation import evaluate
from pipeline.training.learner import EpochSize, Learner, StepRules, Totals
from pipeline.training.optimisation import (
    OptimiserSettings,
    ScheduleSettings,
    make_optimizer,
    make_schedule,
)
from pipeline.training.student_loss import StudentLoss
from pipeline.training.tensorboard_log import events_into
from stages.config.training import OptimiserConfig
from stages.text import percent
from stages.training.evaluation_images import EvaluationImages, normaliser
from stages.training.single_samples import skips_single
from stages.views import seen_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TeacherClasses:
    """The teacher's top class in the clean view, to measure agreement with the student."""

    held_out: Tensor | None
    """(M,) int64, in the order of the held-out samples; None if not known."""
    test: Tensor | None
    """(K,) int64, in the order of the test images; None if not known."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Inputs of a training: the network, its loss, its images and its settings."""

    settings: OptimiserConfig
    identity: Mapping[str, Json]
    """All settings that the numbers depend on."""
    inputs: Inputs
    dataset: Dataset
    rows: NDArray[np.int64]
    """Sample indices that are trained on."""
    views: Views
    model: Classifier
    loss: StudentLoss
    supervision: Supervision | None
    num_distilled: int
    teacher: TeacherClasses
    method: str | None = None
    online: OnlineTeacher | None = None


class Trainer:
    """A learner with its loaders, and the epoch and batch that it has reached."""

    def __init__(self, training: Training, runtime: Runtime, *, ranks: Ranks = ALONE) -> None:
        settings, dataset = training.settings, training.dataset
        self.training = training
        self._settings = settings
        self.runtime, self._ranks = runtime, ranks
        self._loader = BatchLoader(
            dataset.train,
            batch_size=settings.batch_size,
            view_spec=training.views,
            rows=training.rows,
            order="random",
            seed=settings.seed,
            workers=runtime.loader_workers(settings.workers),
            supervision=training.supervision,
            device=runtime.device,
            ranks=ranks,
            skips_single=skips_single(
                training.model,
                settings,
                num_samples=len(training.rows),
                sizes=seen_size(training.views, dataset),
            ),
        )
        images = EvaluationImages(
            dataset=dataset,
            views=training.views,
            runtime=runtime,
            workers=settings.workers,
            ranks=ranks,
        )
        self._held_out, self._test = images.batches(HELD_OUT), images.batches(TEST)
        self.learner = make_learner(
            training,
            normaliser(dataset, runtime),
            runtime,
            num_batches=self._loader.num_batches,
            ranks=ranks,
        )
        if not ranks.is_first:  # for dropout; the weights come from the first rank
            torch.manual_seed(random_stream(settings.seed, ranks.rank, step=0))
        self._totals = Totals(runtime.device)
        self._epoch = 0
        self.metrics: list[dict[str, float]] = []
        self._last: Evaluation | None = None
        self._kept = time.monotonic()

    def run(self, unfinished: UnfinishedRun) -> Evaluation:
        """Train the remaining epochs; return the last evaluation on the held-out samples.

        Raises:
            KeyboardInterrupt, Terminated: if it was asked to stop; a checkpoint was written.
        """
        state = unfinished.checkpoint()
        if state is not None:
            self._restore(state)
            logger.info("%s: resuming %s", unfinished.folder, self._place)
        per_epoch = self._loader.num_samples
        done = self._epoch * per_epoch + self._totals.num_samples
        with (
            catching_stop_signals() as own_request,
            progress(
                f"train {self.training.model.arch}",
                total=self._settings.epochs * per_epoch,
                unit="images",
                done=done,
            ) as bar,
            self._events(unfinished) as record,
        ):
            request = SharedStopRequest(own_request, self._ranks)
            while self._epoch < self._settings.epochs:
                self._train_epoch(unfinished, request, bar)
                record(self.metrics[-1])
                request.settle()
                self._stop_if_asked(request, unfinished)
        return self._last or self._evaluate(self._held_out, "held-out images")

    @property
    def device(self) -> str:
        """Hardware, precision and processes of the training, in words."""
        shared = f", {self._ranks.world} processes" if self._ranks.are_many else ""
        return self.runtime.description + shared

    def test(self) -> Evaluation:
        """Evaluate on the test images."""
        return self._evaluate(self._test, "test images")

    def _train_epoch(
        self, unfinished: UnfinishedRun, request: SharedStopRequest, bar: Progress
    ) -> None:
        """Train the rest of the epoch, evaluate, and write a checkpoint."""

        place = self._place_in_words

        def on_step(num_samples: int) -> None:
            bar.advance(num_samples, note=place)
            is_due = request.ask(self._is_due)
            if request.is_there or is_due:
                self._keep(unfinished)
            self._stop_if_asked(request, unfinished)

        self.learner.loss.begin_epoch(self._epoch)
        trained = self.learner.epoch(
            self._batches(),
            self._totals,
            size=EpochSize(
                num_samples=self._loader.num_samples, batch_size=self._settings.batch_size
            ),
            on_step=on_step,
        )
        held_out = self._evaluate(self._held_out, "held-out images")
        self.metrics.append(
            {
                "epoch": self._epoch + 1,
                "training_loss": trained.loss,
                "training_accuracy": trained.accuracy,
                "held_out_accuracy": held_out.accuracy,
                "held_out_loss": held_out.loss,
                "lr": self.learner.rate,
                "seconds": self._totals.seconds,
                "images_per_second": trained.num_samples / self._totals.seconds,
            }
        )
        self._last = held_out
        self._epoch += 1
        self._totals = Totals(self.runtime.device)
        self._keep(unfinished)

    def _events(
        self, unfinished: UnfinishedRun
    ) -> AbstractContextManager[Callable[[Mapping[str, Json]], None]]:
        """A function that records an epoch for TensorBoard, on the first rank."""
        if not self._ranks.is_first:
            return nullcontext(lambda _: None)
        return events_into(unfinished.folder, next_epoch=self._epoch + 1)

    def _stop_if_asked(self, request: SharedStopRequest, unfinished: UnfinishedRun) -> None:
        """Stop if that was asked for; a checkpoint of this place exists."""
        if request.is_there and self._ranks.is_first:
            logger.warning(
                "%s keeps the training %s. Run the same command to resume",
                unfinished.folder,
                self._place,
            )
        request.raise_if_stopped()

    def _batches(self) -> Generator[Batch]:
        """The remaining batches of this epoch."""
        side = self._settings.side_in(self._epoch)
        batches = self._loader.epoch(self._epoch, skip=self._totals.num_batches, size=side)
        online = self.training.online
        return batches if online is None else online.taught(batches)

    def _evaluate(self, loader: BatchLoader, images: str) -> Evaluation:
        with (
            progress(f"evaluate {images}", total=loader.num_samples, unit="images") as bar,
            closing(loader.view(0)) as batches,
        ):
            return evaluate(
                self.learner.evaluated,
                _counted(batches, bar, world=self._ranks.world),
                normalise=self.learner.normalise,
                runtime=self.runtime,
                ranks=self._ranks,
            )

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._kept > 60.0 * self._settings.checkpoint_minutes

    @property
    def _place_in_words(self) -> str:
        """The epoch at work, and the last accuracy on the held-out samples."""
        done = self.metrics[-1] if self.metrics else None
        accuracy = done and f", held out {percent(done['held_out_accuracy'], digits=1)}"
        return f"epoch {self._epoch + 1}/{self._settings.epochs}{accuracy or ''}"

    @property
    def _place(self) -> str:
        return f"at epoch {self._epoch + 1}, batch {self._totals.num_batches + 1:,}"

    def _keep(self, unfinished: UnfinishedRun) -> None:
        """Write a checkpoint: everything that later numbers depend on."""
        own = {"totals": self._totals.state_dict(), "random": random_state(self.runtime.device)}
        first, *others = all_states(own, self._ranks)
        state = {
            "epoch": self._epoch,
            "metrics": self.metrics,
            "learner": self.learner.state_dict(),
            **first,
            "others": others,
        }
        if self._ranks.is_first:
            unfinished.keep(state, self.metrics)
        self._kept = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self.metrics = state["metrics"]
        self.learner.load_state_dict(state["learner"])
        own = own_state([state, *state.get("others", [])], self._ranks)
        self._totals = Totals.restored(own["totals"], self.runtime.device)
        if own["random"] is not None:
            set_random_state(own["random"], self.runtime.device)
        else:
            step = self.learner.num_steps
            seed = random_stream(self._settings.seed, self._ranks.rank, step=step)
            torch.manual_seed(seed)


def _counted(batches: Iterable[Batch], bar: Progress, *, world: int) -> Iterator[Batch]:
    """The batches of this rank; each stands for those of all ranks."""
    for batch in batches:
        yield batch
        bar.advance(len(batch) * world)


def make_learner(
    training: Training,
    normalise: Normaliser,
    runtime: Runtime,
    *,
    num_batches: int,
    ranks: Ranks = ALONE,
) -> Learner:
    """The network with the optimiser and schedule of its settings."""
    settings = training.settings
    optimizer = make_optimizer(
        (training.model, training.loss),
        settings.produce(OptimiserSettings, kind=settings.optimizer),
    )
    schedule = make_schedule(
        optimizer,
        settings.produce(
            ScheduleSettings,
            kind=settings.schedule,
            steps_per_epoch=-(-num_batches // settings.accumulate),
        ),
    )
    return Learner(
        training.model,
        training.loss,
        schedule=schedule,
        normalise=normalise,
        runtime=runtime,
        rules=settings.produce(StepRules),
        ranks=ranks,
    )
