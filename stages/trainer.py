"""A training under way: epochs, evaluations, checkpoints, and going on from one."""

import logging
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Inputs
from pipeline.artefacts.unfinished_run import UnfinishedRun
from pipeline.data.loaders import Batch, BatchLoader, Supervision
from pipeline.data.views import ViewSpec
from pipeline.evaluation import Evaluation, evaluate
from pipeline.models import Classifier
from pipeline.normalisation import Normaliser
from pipeline.online_teacher import OnlineTeacher
from pipeline.optimisation import make_optimizer, make_schedule
from pipeline.progress import Progress, progress
from pipeline.provenance import Json
from pipeline.runtime import Runtime
from pipeline.stopping import StopWish, hearing_stop_wishes
from pipeline.student_loss import StudentLoss
from pipeline.training import EpochSize, Learner, StepRules, Totals
from pipeline.training_log import events_into
from stages.training_config import OptimiserConfig

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
    model: Classifier
    loss: StudentLoss
    supervision: Supervision | None
    num_distilled: int
    teacher: TeacherClasses
    method: str | None = None
    online: OnlineTeacher | None = None


class Trainer:
    """A learner with its loaders, and the place that it has reached."""

    def __init__(self, training: Training, runtime: Runtime) -> None:
        settings, dataset = training.settings, training.dataset
        workers = runtime.loader_workers(settings.workers)
        self._training = training
        self._settings = settings
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
            dataset.train, batch_size=EVALUATION_BATCH, rows=dataset.held_out, workers=workers
        )
        self._test = BatchLoader(dataset.eval, batch_size=EVALUATION_BATCH, workers=workers)
        normalise = Normaliser(
            mean=dataset.record.mean, std=dataset.record.std, device=runtime.device
        )
        self.learner = make_learner(
            training, normalise, runtime, num_batches=self._loader.num_batches
        )
        self._totals = Totals(runtime.device)
        self._epoch = 0
        self.metrics: list[dict[str, float]] = []
        self._last: Evaluation | None = None
        self._kept = time.monotonic()

    def run(self, unfinished: UnfinishedRun) -> Evaluation:
        """Train the epochs that are left; the last evaluation on the held-out rows.

        Raises:
            KeyboardInterrupt, Terminated: if it was asked to stop; a checkpoint was made.
        """
        state = unfinished.checkpoint()
        if state is not None:
            self._restore(state)
            logger.info("%s: going on %s", unfinished.folder, self._place)
        per_epoch = self._loader.num_samples
        done = self._epoch * per_epoch + self._totals.num_samples
        with (
            hearing_stop_wishes() as wish,
            progress(
                f"train {self._training.model.arch}",
                total=self._settings.epochs * per_epoch,
                unit="images",
                done=done,
            ) as bar,
            events_into(unfinished.folder, next_epoch=self._epoch + 1) as tell,
        ):
            while self._epoch < self._settings.epochs:
                self._train_epoch(unfinished, wish, bar)
                tell(self.metrics[-1])
                self._obey(wish, unfinished)
        return self._last or self._evaluate(self._held_out)

    def test(self) -> Evaluation:
        """Look at the test images."""
        return self._evaluate(self._test)

    def _train_epoch(self, unfinished: UnfinishedRun, wish: StopWish, bar: Progress) -> None:
        """Train the rest of the epoch, evaluate, keep a checkpoint."""

        def on_step(num_samples: int) -> None:
            bar.advance(num_samples, note=f"epoch {self._epoch + 1}")
            if wish.is_there or self._is_due:
                self._keep(unfinished)
            self._obey(wish, unfinished)

        self.learner.loss.begin_epoch(self._epoch)
        trained = self.learner.epoch(
            self._batches(),
            self._totals,
            size=EpochSize(
                num_samples=self._loader.num_samples, batch_size=self._settings.batch_size
            ),
            on_step=on_step,
        )
        held_out = self._evaluate(self._held_out)
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

    def _obey(self, wish: StopWish, unfinished: UnfinishedRun) -> None:
        """Stop where that was asked for; a checkpoint of this very place exists."""
        if wish.is_there:
            logger.warning(
                "%s keeps the training %s: run the same command to go on",
                unfinished.folder,
                self._place,
            )
        wish.obey()

    def _batches(self) -> Generator[Batch]:
        """The batches of this epoch that are left."""
        batches = self._loader.epoch(self._epoch, skip=self._totals.num_batches)
        online = self._training.online
        return batches if online is None else online.taught(batches)

    def _evaluate(self, loader: BatchLoader) -> Evaluation:
        return evaluate(
            self.learner.evaluated,
            loader.view(0),
            normalise=self.learner.normalise,
            runtime=self.runtime,
        )

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._kept > 60.0 * self._settings.checkpoint_minutes

    @property
    def _place(self) -> str:
        return f"at epoch {self._epoch + 1}, batch {self._totals.num_batches + 1:,}"

    def _keep(self, unfinished: UnfinishedRun) -> None:
        """Make a checkpoint: everything that the numbers to come depend on."""
        state = {
            "epoch": self._epoch,
            "totals": self._totals.state_dict(),
            "metrics": self.metrics,
            "learner": self.learner.state_dict(),
            "random": _random_state(self.runtime.device),
        }
        unfinished.keep(state, self.metrics)
        self._kept = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self._totals = Totals.restored(state["totals"], self.runtime.device)
        self.metrics = state["metrics"]
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.runtime.device)


def make_learner(
    training: Training, normalise: Normaliser, runtime: Runtime, *, num_batches: int
) -> Learner:
    """The network with its optimiser and schedule, as the settings say."""
    settings = training.settings
    modules: tuple[nn.Module, ...] = (training.model, training.loss)
    optimizer = make_optimizer(
        modules,
        kind=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        decay_norms=settings.decay_norms,
    )
    schedule = make_schedule(
        optimizer,
        kind=settings.schedule,
        epochs=settings.epochs,
        steps_per_epoch=-(-num_batches // settings.accumulate),
        warmup=settings.warmup,
        milestones=settings.milestones,
        gamma=settings.gamma,
    )
    return Learner(
        training.model,
        training.loss,
        optimizer=optimizer,
        schedule=schedule,
        normalise=normalise,
        runtime=runtime,
        rules=StepRules(accumulate=settings.accumulate, clip_norm=settings.clip_norm),
        ema_decay=settings.ema_decay,
        compile=settings.compile,
    )


def _random_state(device: torch.device) -> dict[str, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
