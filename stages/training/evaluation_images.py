"""Images as networks are evaluated on them: every one once, in order, in the clean view."""

from typing import Literal

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.view_specs import Views
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks
from stages.views import seen_size

EVALUATION_BATCH = 1000
"""Images of at most 64 x 64 pixels, or fewer larger ones that have as many pixels."""


def clean_images(
    dataset: Dataset,
    split: Literal["held_out", "test"],
    views: Views,
    runtime: Runtime,
    *,
    workers: int = 0,
    ranks: Ranks = ALONE,
) -> BatchLoader:
    """Batches of the held-out rows or of the test images, in the order of their indices."""
    clean = views.clean
    height, width = seen_size(clean, dataset)
    return BatchLoader(
        dataset.train if split == "held_out" else dataset.eval,
        batch_size=ranks.world * max(1, EVALUATION_BATCH * 64**2 // max(height * width, 64**2)),
        view_spec=clean,
        rows=dataset.held_out if split == "held_out" else None,
        workers=runtime.loader_workers(workers),
        device=runtime.device,
        ranks=ranks,
    )


def normaliser(dataset: Dataset, runtime: Runtime) -> Normaliser:
    """What makes bytes the inputs of networks that were trained on ``dataset``."""
    record = dataset.record
    return Normaliser(mean=record.mean, std=record.std, device=runtime.device, dtype=runtime.dtype)
