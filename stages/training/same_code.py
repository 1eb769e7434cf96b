"""Comparison of a run with its network's code, which no id holds for a network from elsewhere."""

from contextlib import closing
from itertools import islice

import numpy as np
import torch

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import TEST, Predictions
from pipeline.artefacts.run import Run
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.models.checkpoints import load_into, load_weights
from pipeline.models.zoo import build
from pipeline.runtime.device import resolve_runtime
from pipeline.training.evaluation import evaluate
from stages.config.training import OptimiserConfig
from stages.training.evaluation_images import EvaluationImages, normaliser

TOLERANCE = 0.1
"""Largest difference of a probability or a loss in nats; hardware of one precision differs by less.

It bounds each image in fp32, and the mean over the images in bf16, whose logits are coarser.
"""


def require_same_code(
    run: Run, settings: OptimiserConfig, dataset: Dataset, *, views: Views
) -> None:
    """Reject a run of a network from elsewhere whose code gives other predictions now.

    A run without predictions, and a network of heartcut's own, are not compared.

    Raises:
        ArtefactMismatch: if the predictions of the first test images differ.
    """
    if ":" not in run.result.arch:
        return
    try:
        stored = Predictions.open(run.path).of(TEST)
    except (ArtefactNotFound, ArtefactMismatch):
        return  # it is recomputed where it is needed
    runtime = resolve_runtime(settings.precision)
    model = build(run.result.arch, num_classes=dataset.num_classes, head=settings.head)
    load_into(model, load_weights(run.weights), source=run.weights)
    images = EvaluationImages(dataset=dataset, views=views, runtime=runtime)
    with torch.no_grad(), closing(images.batches(TEST).view(0)) as batches:
        found = evaluate(
            runtime.place(model),
            islice(batches, 1),
            normalise=normaliser(dataset, runtime),
            runtime=runtime,
        )
    count = len(found.predicted)
    # A bf16 logit of 16 or more is rounded to eighths, so one image says nothing.
    spread = np.max if runtime.precision in ("fp32", "fp64") else np.mean
    differences = [
        spread(np.abs(values.numpy() - stored[name].to_numpy()[:count]))
        for name, values in (
            ("confidence", found.confidence),
            ("cross_entropy", found.cross_entropy),
        )
    ]
    if not max(differences) <= TOLERANCE:
        raise ArtefactMismatch(
            f"{run.path} was trained with other code of {run.result.arch}: the predictions of "
            f"{count} test images differ by {max(differences):.3g} (expected at most "
            f"{TOLERANCE}). Restore the code, or give the changed network another name in `arch`, "
            "which makes another run."
        )
