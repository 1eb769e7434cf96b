"""Predictions of a run's network on the held-out and test images: read, or computed and kept."""

import logging
from typing import Literal

import torch
from pydantic import BaseModel, ValidationError

from pipeline.artefacts import predictions as prediction_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import HELD_OUT, TEST, PredictionRecord, Predictions
from pipeline.artefacts.run import RESULT, SETTINGS, Run, read_settings
from pipeline.data.view_specs import Views, views_from_json
from pipeline.errors import ArtefactMismatch
from pipeline.methods.metrics import Evaluation
from pipeline.models.checkpoints import load_into, load_weights
from pipeline.models.networks.classifier import Classifier
from pipeline.models.zoo import build
from pipeline.provenance import short
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.training.evaluation import evaluate
from stages.config.types import TrainingPrecision
from stages.text import percent
from stages.training.evaluation_images import EvaluationImages, normaliser

logger = logging.getLogger(__name__)

_ROUNDED_SHARE, _ROUNDED_IMAGES = 0.005, 2
"""Share and number of images by which accuracies may differ on other hardware."""


class _Settings(BaseModel):
    """Settings of a run that its network depends on."""

    precision: TrainingPrecision
    head: str = ""
    views: dict[str, bool | int | float | str]


def write_predictions(
    run: Run, dataset: Dataset, *, held_out: Evaluation, test: Evaluation
) -> None:
    """Write the predictions of the network of ``run`` next to its weights."""
    record = PredictionRecord(
        weights_sha256=run.result.weights_sha256, dataset=run.result.inputs.dataset
    )
    parts = [_split(HELD_OUT, held_out, dataset), _split(TEST, test, dataset)]
    prediction_format.write(run.path, record, parts)


def open_predictions(run: Run, dataset: Dataset) -> Predictions:
    """Open the predictions of a run; compute them if they are missing or of other weights.

    Raises:
        ArtefactMismatch: if the run was trained on other images.
    """
    if run.result.inputs.dataset != dataset.record.id:
        raise ArtefactMismatch(
            f"{run.path} was trained on data set {short(run.result.inputs.dataset)} (expected "
            f"{short(dataset.record.id)}, of {dataset.folder}). Pass runs of one data set."
        )
    path = run.path / prediction_format.FILE
    if path.exists():
        try:
            found = Predictions.open(run.path)
        except ArtefactMismatch:
            logger.warning("%s is damaged and is recomputed", path)
        else:
            if found.record.weights_sha256 == run.result.weights_sha256:
                if not _differing(found, run):
                    return found
                logger.warning("%s does not agree with %s and is recomputed", path, RESULT)
    _predict(run, dataset)
    found = Predictions.open(run.path)
    if differing := _differing(found, run):
        raise ArtefactMismatch(
            f"{run.path / RESULT} does not agree with the weights of the run: {differing}. Remove "
            f"{run.path} and train again."
        )
    return found


def _differing(found: Predictions, run: Run) -> str:
    """The first accuracy of ``run`` that its predictions do not have, in words; "" if none.

    Another processor may round a few images to another class.
    """
    result = run.result
    for split, expected in (
        (HELD_OUT, result.held_out_accuracy_last),
        (TEST, result.test_accuracy),
    ):
        accuracy, num = found.accuracy(split), len(found.of(split))
        if abs(accuracy - expected) > _ROUNDED_SHARE + _ROUNDED_IMAGES / num:
            name = split.replace("_", "-")
            return f"{name} accuracy {percent(expected)} (expected {percent(accuracy)})"
    return ""


def _predict(run: Run, dataset: Dataset) -> None:
    model, views, runtime = _network(run, dataset)
    images = EvaluationImages(dataset=dataset, views=views, runtime=runtime)

    def of(split: Literal["held_out", "test"]) -> Evaluation:
        batches = images.batches(split).view(0)
        return evaluate(model, batches, normalise=normaliser(dataset, runtime), runtime=runtime)

    write_predictions(run, dataset, held_out=of(HELD_OUT), test=of(TEST))


def _network(run: Run, dataset: Dataset) -> tuple[Classifier, Views, Runtime]:
    """The network of a run, the views that it was trained on, and its precision."""
    try:
        settings = _Settings.model_validate(read_settings(run.path))
    except ValidationError as error:
        wrong = ", ".join(str(found["loc"][0]) for found in error.errors())
        raise ArtefactMismatch(
            f"{run.path / SETTINGS} is damaged: {wrong}. Remove {run.path} and train again."
        ) from error
    runtime = resolve_runtime(settings.precision)
    model = build(run.result.arch, num_classes=dataset.num_classes, head=settings.head)
    load_into(model, load_weights(run.weights), source=run.weights)
    return runtime.place(model), views_from_json(settings.views), runtime


def _split(
    split: Literal["held_out", "test"], found: Evaluation, dataset: Dataset
) -> prediction_format.SplitPredictions:
    is_test = split == TEST
    indices = torch.arange(dataset.eval.num_samples).numpy() if is_test else dataset.held_out
    samples = dataset.eval.samples if is_test else dataset.train.samples
    return prediction_format.SplitPredictions(
        split=split,
        indices=indices,
        labels=samples.labels[indices],
        predicted=found.predicted.numpy(),
        confidence=found.confidence.numpy(),
        cross_entropy=found.cross_entropy.numpy(),
    )
