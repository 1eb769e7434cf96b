"""One training, from a network to a published run, for students and teachers."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from pipeline.artefacts import run as run_format
from pipeline.artefacts.publishing import publish_json, publishing_folder
from pipeline.artefacts.run import Cost, Run, RunResult, run_id
from pipeline.artefacts.unfinished_run import UnfinishedRun, require_same_training, unfinished_path
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.methods.metrics import Evaluation, agreement
from pipeline.models.checkpoints import save_weights
from pipeline.provenance import Json, file_sha256
from pipeline.runtime.device import Runtime, versions
from pipeline.runtime.ranks import ALONE, Ranks
from stages.text import duration, percent
from stages.training.chance import warn_of_chance
from stages.training.predictions import write_predictions
from stages.training.trainer import Trainer, Training

logger = logging.getLogger(__name__)


def train(
    training: Training,
    path: Path,
    runtime: Runtime,
    *,
    ranks: Ranks = ALONE,
    log_result: bool = True,
) -> Run:
    """Train or resume; evaluate on the held-out samples every epoch, on the test images once.

    Several ranks train one network together; the first one writes. The line with the test accuracy
    is logged if ``log_result``.

    Raises:
        ConfigError: if a batch cannot be divided equally among the processes.
    """
    _require_equal_parts(training, ranks)
    with _unfinished(training, path, ranks) as unfinished:
        trainer = Trainer(training, runtime, ranks=ranks)
        held_out = trainer.run(unfinished)
        test = trainer.test()
        if ranks.is_first:
            _publish(trainer, unfinished, held_out=held_out, test=test, path=path)
        ranks.wait()
    run = Run.open(path)
    if log_result:
        logger.info("%s: %s", path, describe(run.result))
        logger.debug("%s: %s", path, _details(run.result))
        if ranks.is_first:
            steps = trainer.learner.num_steps
            warn_of_chance(training.settings, run.result, training.dataset, num_steps=steps)
    return run


def _require_equal_parts(training: Training, ranks: Ranks) -> None:
    size = training.settings.batch_size
    if size % ranks.world:
        near = max(size // ranks.world, 1) * ranks.world
        raise ConfigError(
            f"batch_size is {size} (expected a multiple of {ranks.world}, the processes that share "
            f"a batch). Set batch_size to {near}, or start another number of processes."
        )


@contextmanager
def _unfinished(training: Training, path: Path, ranks: Ranks) -> Iterator[UnfinishedRun]:
    """The folder of the training, which the first rank locks and all ranks read."""
    if not ranks.is_first:
        ranks.wait()
        yield UnfinishedRun(folder=unfinished_path(path))
        return
    opened = UnfinishedRun.opened(path, settings=training.identity, inputs=training.inputs)
    with opened as unfinished:
        ranks.wait()
        yield unfinished


def _publish(
    trainer: Trainer,
    unfinished: UnfinishedRun,
    *,
    held_out: Evaluation,
    test: Evaluation,
    path: Path,
) -> None:
    """Publish the run of a completed training, and remove the checkpoint."""
    training = trainer.training
    with publishing_folder(path) as folder:
        (folder / run_format.SETTINGS).write_text(_as_toml(training.identity), encoding="utf-8")
        run_format.write_metrics(folder, trainer.metrics)
        for events in unfinished.events():
            shutil.copyfile(events, folder / events.name)  # some file systems refuse chmod
        save_weights(trainer.learner.evaluated, folder / run_format.WEIGHTS)
        weights = file_sha256(folder / run_format.WEIGHTS)
        result = _result(trainer, held_out, test, weights=weights)
        result = result.model_copy(update={"files": run_format.file_digests(folder)})
        run = Run(path=folder, result=result)
        write_predictions(run, training.dataset, held_out=held_out, test=test)
        publish_json(folder / run_format.RESULT, result.model_dump(mode="json"))
    unfinished.remove()


def require_resumable(
    folder: Path, path: Path, *, settings: Mapping[str, Json], inputs: run_format.Inputs
) -> None:
    """Reject `--resume` of a training with other settings or inputs.

    Raises:
        ArtefactNotFound: if there is no interrupted training.
        ArtefactMismatch: if it is another one, naming the keys that differ.
    """
    require_same_training(folder, settings=settings, inputs=inputs)
    expected = unfinished_path(path)
    if folder.resolve() != expected.resolve():
        raise ArtefactMismatch(
            f"{folder} is not the folder of this training (expected {expected}). Move it there, or "
            "set `workspace`."
        )


def describe(result: RunResult) -> str:
    """Describe a run in one line."""
    return (
        f"test accuracy {percent(result.test_accuracy)}, "
        f"held-out accuracy {percent(result.held_out_accuracy_mean_of_last)}"
        + (f" (mean of the last {result.mean_of_last} epochs)" if result.mean_of_last > 1 else "")
        + f", {duration(result.cost.seconds)}"
    )


def _details(result: RunResult) -> str:
    agrees = result.teacher_agreement_test
    return (
        f"held-out accuracy {percent(result.held_out_accuracy_last)} in the last epoch, "
        f"{percent(result.held_out_accuracy_best)} in the best (epoch {result.best_epoch})"
        + ("" if agrees is None else f", same class as the teacher in {percent(agrees, digits=1)}")
        + f", {result.cost.training_images_per_second:,.0f} images/s on {result.cost.device}"
    )


def _result(trainer: Trainer, last: Evaluation, test: Evaluation, *, weights: str) -> RunResult:
    training = trainer.training
    settings, dataset = training.settings, training.dataset
    held_out = [float(line["held_out_accuracy"]) for line in trainer.metrics]
    last_epochs = held_out[-settings.mean_of_last :]
    seconds = sum(float(line["seconds"]) for line in trainer.metrics)
    num_images = len(training.rows) * settings.epochs
    is_offline = training.supervision is not None and training.online is None
    return RunResult(
        id=run_id(training.identity, training.inputs),
        weights_sha256=weights,
        arch=training.model.arch,
        num_parameters=sum(w.numel() for w in training.model.parameters()),
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
        teacher_agreement_held_out=_agreement(last, training.teacher.held_out),
        teacher_agreement_test=_agreement(test, training.teacher.test),
        num_distilled=training.num_distilled,
        method=training.method,
        online=training.online is not None,
        cost=Cost(
            seconds=seconds,
            training_images_per_second=num_images / seconds,
            teacher_forwards_saved=num_images if is_offline else 0,
            device=trainer.device,
        ),
        versions=versions(),
    )


def _agreement(evaluation: Evaluation, teacher: Tensor | None) -> float | None:
    if teacher is None or bool((teacher < 0).all()):
        return None
    return agreement(evaluation.predicted, teacher)


def _as_toml(settings: Mapping[str, Json]) -> str:
    """Settings as TOML; JSON's numbers, strings, booleans and lists are TOML's too."""
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
