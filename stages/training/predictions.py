"""Predictions of a run's network on the held-out and test images: read, or computed and kept."""

import logging
from typing import Literal

import torch
from pydantic import BaseModel, ValidationError

from pipeline.artefacts import predictions as prediction_format
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import HELD_OUT, TEST, PredictionRecord, Predictions
from pipeline.artefacts.run import SETTINGS, Run, read_settings
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
from stages.training.evaluation_images import EvaluationImages, normaliser

logger = logging.getLogger(__name__)


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
    if (run.path / prediction_format.FILE).exists():
        try:
            found = Predictions.open(run.path)
        except ArtefactMismatch:
            logger.warning("%s is damaged and is recomputed", run.path / prediction_format.FILE)
        else:
            if found.record.weights_sha256 == run.result.weights_sha256:
                return found
    _predict(run, dataset)
    return Predictions.open(run.path)


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
