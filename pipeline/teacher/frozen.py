"""A frozen teacher: its network, its normalisation of images, its outputs, and the identity of a
cache of these outputs."""

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
    """A frozen network, the normalisation of its images, and its origin."""

    model: Classifier
    digest: str
    """Digest of its weights, and of the order of its channels unless that is red, green, blue."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """The normalisation that it was trained with, pixels / 255."""
    target_in_sample: bool
    """True if its own training saw the held-out images."""
    description: str
    """Readable name."""
    is_bgr: bool = False
    """True if it takes blue, green, red; ``mean`` and ``std`` are of red, green, blue anyway."""

    def normaliser(self, device: torch.device) -> Normaliser:
        """Converter from uint8 images to its inputs."""
        return Normaliser(mean=self.mean, std=self.std, device=device, is_bgr=self.is_bgr)


@dataclass(frozen=True, kw_only=True)
class KeptOutputs:
    """The part of the teacher's outputs that a cache keeps."""

    features: bool
    top_k: int = 0
    """Logits kept of each row; 0: all."""
    temperatures: tuple[float, ...] = ()
    """Temperatures at which the log-sum-exp of all logits is kept in addition to the top k."""


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
    """Logits (B, C) and features (B, D) of a batch, float32."""
    features = teacher_features(model, normalise, batch, runtime=runtime)
    return head_logits(model, features), features


def teacher_features(
    model: Classifier, normalise: Normaliser, batch: Batch, *, runtime: Runtime
) -> Tensor:
    """Features (B, D) of a batch, float32."""
    with runtime.autocast():
        features: Tensor = model.features(normalise(batch.images))
    return features.float()


def head_logits(model: Classifier, features: Tensor) -> Tensor:
    """Logits (B, C) of features (B, D).

    The head always runs in float32, so logits can be recomputed from the features.
    """
    return F.linear(features, model.head.weight, model.head.bias)
