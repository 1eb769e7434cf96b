"""Images for evaluation: each one once, in order, in the clean view."""

from dataclasses import dataclass
from typing import Literal

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.view_specs import Views
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks
from stages.views import seen_size

EVALUATION_BATCH = 1000
"""Images in a batch, for up to 64 x 64 pixels."""
EVALUATION_PIXELS = 16 * 224**2
"""Pixels in a batch of larger images: with more, memory grows and a CPU is slower, not faster."""


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """The held-out and test images of a data set, for networks that were trained on ``views``."""

    dataset: Dataset
    views: Views
    runtime: Runtime
    workers: int = 0
    ranks: Ranks = ALONE

    def batches(self, split: Literal["held_out", "test"]) -> BatchLoader:
        """The held-out samples or the test images, in the order of their indices."""
        dataset, clean = self.dataset, self.views.clean
        height, width = seen_size(clean, dataset)
        most = EVALUATION_BATCH
        if height * width > 64**2:
            most = max(1, EVALUATION_PIXELS // (height * width))
        return BatchLoader(
            dataset.train if split == "held_out" else dataset.eval,
            batch_size=self.ranks.world * most,
            view_spec=clean,
            rows=dataset.held_out if split == "held_out" else None,
            workers=self.runtime.loader_workers(self.workers),
            device=self.runtime.device,
            ranks=self.ranks,
        )


def normaliser(dataset: Dataset, runtime: Runtime) -> Normaliser:
    """The normalisation of images for networks that were trained on ``dataset``."""
    record = dataset.record
    return Normaliser(mean=record.mean, std=record.std, device=runtime.device, dtype=runtime.dtype)
