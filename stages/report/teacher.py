"""What a report tells of the teacher: its cache, its answers, and what it cost."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import ANYTHING, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.errors import PipelineError
from pipeline.provenance import short
from stages.config.root import Config


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the teacher says of the images of a split in the clean view."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """The cache that students learned from, and that of the test images if there is one."""

    cache: TeacherCache
    test: TeacherCache | None
    folder: Path
    """Where copies of caches lie."""

    @property
    def images_per_second(self) -> float:
        """Of the pass that filled the cache."""
        shape = self.cache.shape
        return shape.num_samples * shape.num_views / self.cache.summary.seconds

    def probs(self, dataset: Dataset, samples: NDArray[np.int64]) -> torch.Tensor | None:
        """Probabilities of training samples in the clean view at temperature 1, (n, C).

        None where the cache keeps too little to tell.
        """
        joined = join_samples(
            self.cache, dataset.train.samples, place=str(dataset.train.path), accept=ANYTHING
        )
        hydrated = HydratedCache(cache=self.cache, joined=joined, folder=self.folder)
        kept = self.cache.manifest.identity.temperatures
        if (self.cache.is_sparse and 1.0 not in kept) or not joined.known[samples].all():
            return None
        logits = hydrated.logit_rows(0, torch.from_numpy(samples), temperature=1.0)
        return logits.float().softmax(dim=1)

    def on_test(self, dataset: Dataset) -> Answers | None:
        """On the test images, where they were cached."""
        return None if self.test is None else _answers(self.test, dataset.eval, self.folder)


def teacher_of(
    workspace: Path, cache_id: str, dataset: Dataset, config: Config | None
) -> TeacherFacts | None:
    """The cache with that id, in the workspace or where the configuration says; None: not found."""
    folder = workspace / "caches"
    places: list[str | Path] = [folder / short(cache_id)]
    if config is not None and config.select.cache is not None:
        places.append(config.select.cache)
    if config is not None and config.caches:
        places.append(f"{config.caches.rstrip('/')}/{short(cache_id)}")
    for place in places:
        cache = _opened(place)
        if cache is not None and cache.id == cache_id:
            return TeacherFacts(
                cache=cache, test=_test_cache(cache, dataset, folder), folder=folder
            )
    return None


def _opened(place: str | Path) -> TeacherCache | None:
    try:
        return TeacherCache.open(place)
    except PipelineError:  # gone, or cannot be reached: the report says less
        return None


def _test_cache(cache: TeacherCache, dataset: Dataset, folder: Path) -> TeacherCache | None:
    """The cache of the same teacher on the test images."""
    for place in sorted(folder.glob("*/sealed.json")):
        if place.parent.name == short(cache.id):  # this very cache, which is open
            continue
        found = _opened(place.parent)
        if (
            found is not None
            and found.manifest.identity.weights == cache.manifest.identity.weights
            and found.manifest.identity.fingerprint == dataset.eval.samples.fingerprint
        ):
            return found
    return None


def _answers(cache: TeacherCache, beton: Beton, folder: Path) -> Answers | None:
    joined = join_samples(cache, beton.samples, place=str(beton.path), accept=ANYTHING)
    if not joined.known.all() or (
        cache.is_sparse and 1.0 not in cache.manifest.identity.temperatures
    ):
        return None
    hydrated = HydratedCache(cache=cache, joined=joined, folder=folder)
    predicted, confidence = [], []
    for block in hydrated.logit_blocks(0, temperature=1.0):
        probs, classes = block.logits.float().softmax(dim=1).max(dim=1)
        predicted.append(classes.numpy())
        confidence.append(probs.double().numpy())
    return Answers(
        labels=beton.samples.labels,
        predicted=np.concatenate(predicted),
        confidence=np.concatenate(confidence),
    )
