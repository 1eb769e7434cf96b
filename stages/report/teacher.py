"""Facts about the teacher: its cache, its size, its predictions on the test images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import ANYTHING, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.errors import PipelineError
from pipeline.methods.metrics import reliability
from pipeline.models.zoo import ZOO, build
from pipeline.provenance import short
from stages.config.root import Config


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Predictions of the teacher on the images of a split, in the clean view."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: float | None
    """Mean cross-entropy, nats; None where the cache keeps too few logits."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.equal(self.predicted, self.labels)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def calibration_error(self) -> float:
        return reliability(self.confidence, self.correct).error


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a network."""

    num_parameters: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """The cache that students learned from, and that of the test images if there is one."""

    cache: TeacherCache
    test: TeacherCache | None
    folder: Path
    """Folder of the copies of caches."""

    @property
    def num_forwards(self) -> int:
        """Images that the pass over the training images read, each view counted."""
        return self.cache.shape.num_samples * self.cache.shape.num_views

    @property
    def images_per_second(self) -> float:
        """Speed of the pass that filled the cache."""
        return self.num_forwards / self.cache.summary.seconds

    @property
    def held_out_accuracy(self) -> float | None:
        """Accuracy in the clean view; None where nothing is held out."""
        found = self.cache.summary.accuracy_held_out
        return found[0] if found else None

    @property
    def size(self) -> Size | None:
        """Size of a network of the zoo; another one is not built for a report."""
        arch = self.cache.manifest.identity.arch
        if arch not in ZOO:
            return None
        with torch.device("meta"):
            state = build(arch, num_classes=self.cache.shape.num_classes)
        return Size(
            num_parameters=sum(weight.numel() for weight in state.parameters()),
            num_bytes=sum(t.numel() * t.element_size() for t in state.state_dict().values()),
        )

    def probs(self, dataset: Dataset, samples: NDArray[np.int64]) -> torch.Tensor | None:
        """Probabilities of training samples in the clean view at temperature 1, (n, C).

        None where the cache keeps too few logits.
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
        """Predictions on the test images, where they were cached."""
        return None if self.test is None else _answers(self.test, dataset.eval, self.folder)


def teacher_of(
    workspace: Path, cache_id: str, dataset: Dataset, config: Config | None
) -> TeacherFacts | None:
    """The cache with that id, in the workspace or in the configuration's place; None: not found."""
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
    except PipelineError:  # gone, or out of reach: the report leaves the teacher out
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
    labels = torch.tensor(beton.samples.labels, dtype=torch.int64)
    predicted, confidence, losses = [], [], 0.0
    for block in hydrated.logit_blocks(0, temperature=1.0):
        logits = block.logits.float()
        own = labels[block.samples]
        probs, classes = logits.softmax(dim=1).max(dim=1)
        predicted.append(classes.numpy())
        confidence.append(probs.double().numpy())
        losses += F.cross_entropy(logits.double(), own, reduction="sum").item()
    return Answers(
        labels=beton.samples.labels,
        predicted=np.concatenate(predicted),
        confidence=np.concatenate(confidence),
        loss=None if cache.is_sparse else losses / len(labels),
    )
