"""A frozen teacher: its network, what it expects of images, what it says of them, and what
that depends on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts.cache.record import CacheIdentity
from pipeline.artefacts.dataset import Beton
from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.data.view_specs import Views
from pipeline.models.networks.classifier import Classifier
from pipeline.runtime.device import Runtime


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen network, what it expects of images, and where it comes from."""

    model: Classifier
    digest: str
    """Of its weights."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """The normalisation that it was trained with, pixels / 255."""
    target_in_sample: bool
    """Its own training saw the held-out images."""
    description: str
    """What a person calls it."""

    def normaliser(self, device: torch.device) -> Normaliser:
        """What makes bytes its inputs."""
        return Normaliser(mean=self.mean, std=self.std, device=device)


@dataclass(frozen=True, kw_only=True)
class KeptOutputs:
    """The part of the teacher's outputs that a cache keeps."""

    features: bool
    top_k: int = 0
    """Logits of each row; 0: all."""
    temperatures: tuple[float, ...] = ()
    """Temperatures at which the sum over all logits is kept beside the top k."""


def cache_identity(
    teacher: Teacher, *, beton: Beton, views: Views, runtime: Runtime, kept: KeptOutputs
) -> CacheIdentity:
    """Everything that the cached numbers depend on."""
    assert runtime.precision in ("bf16", "fp32"), "a cache is made in bf16 or fp32"
    return CacheIdentity(
        weights=teacher.digest,
        arch=teacher.model.arch,
        fingerprint=beton.record.fingerprint,
        pixel_digest=beton.record.pixel_digest,
        mean=teacher.mean,
        std=teacher.std,
        views=views.as_json(),
        precision=runtime.precision,
        features=kept.features,
        top_k=kept.top_k,
        temperatures=kept.temperatures if kept.top_k else (),
    )


def teacher_outputs(
    model: Classifier, normalise: Normaliser, batch: Batch, *, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and features (B, D) of a batch, float32.

    The head runs in float32 whatever the trunk runs in, so logits are exact in the features.
    """
    with runtime.autocast():
        features = model.features(normalise(batch.images))
    features = features.float()
    return F.linear(features, model.head.weight, model.head.bias), features
