"""The teacher's one pass: every view of a beton through the frozen network, into a cache."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts import cache_writer
from pipeline.artefacts.cache_record import CacheIdentity, CacheShape, CacheSummary, Fidelity
from pipeline.artefacts.cache_writer import CacheContents, CacheWriter
from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import Batch, BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch
from pipeline.models import Classifier
from pipeline.progress import Progress, progress
from pipeline.runtime import Runtime, versions
from pipeline.training import Normaliser

FIDELITY_ROWS = 4096
FIDELITY_TEMPERATURES = (1.0, 4.0)
HEAD_TOLERANCE = 0.02
"""Share of the largest logit by which the head of the stored features may miss a logit."""


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


def cache_identity(
    teacher: Teacher, *, beton: Beton, views: ViewSpec, runtime: Runtime, features: bool
) -> CacheIdentity:
    """Everything that the cached numbers depend on."""
    return CacheIdentity(
        weights=teacher.digest,
        arch=teacher.model.arch,
        fingerprint=beton.record.fingerprint,
        pixel_digest=beton.record.pixel_digest,
        mean=teacher.mean,
        std=teacher.std,
        views=views.as_json(),
        precision=runtime.precision,
        features=features,
    )


def cache_views(
    path: Path,
    *,
    identity: CacheIdentity,
    teacher: Teacher,
    loader: BatchLoader,
    beton: Beton,
    num_views: int,
    runtime: Runtime,
    held_out: NDArray[np.int64],
) -> None:
    """Run the teacher over views 0 to ``num_views - 1`` and publish a sealed cache at ``path``.

    Args:
        path: where the cache will lie.
        identity: what `cache_identity` gives for the other arguments.
        teacher: the frozen network.
        loader: all of ``beton`` in sequential order.
        beton: the images.
        num_views: views to store, the clean one included.
        runtime: device and precision.
        held_out: sample indices whose accuracy is told apart, (M,) int64; may be empty.
    Raises:
        PipelineError: if an output is not finite or does not fit float16, or the disk is full.
        ArtefactMismatch: if the head of the features does not give the logits.
    """
    head = teacher.model.head
    shape = CacheShape(
        num_views=num_views,
        num_samples=beton.num_samples,
        num_classes=head.out_features,
        num_features=head.in_features,
    )
    contents = CacheContents(
        labels=beton.samples.labels,
        keys=beton.samples.keys,
        head_weight=_numpy(head.weight.detach()),
        head_bias=_numpy(head.bias.detach()),
    )
    with cache_writer.create(path, identity=identity, shape=shape, contents=contents) as unsealed:
        teacher_pass = _Pass(
            teacher=teacher, runtime=runtime, loader=loader, writer=unsealed.writer
        )
        unsealed.seal(teacher_pass.run(num_views, beton=beton, held_out=held_out))


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One run of the teacher over all views of a beton."""

    teacher: Teacher
    runtime: Runtime
    loader: BatchLoader
    writer: CacheWriter

    def run(self, num_views: int, *, beton: Beton, held_out: NDArray[np.int64]) -> CacheSummary:
        """Fill the cache; return what it says of the teacher."""
        started = time.monotonic()
        total = num_views * beton.num_samples
        predicted, sample, head_error = [], None, 0.0
        with progress(f"teacher on {beton.path.name}", total=total, unit="images") as bar:
            for view in range(num_views):
                classes, first_logits, error = self._view(view, bar)
                predicted.append(classes)
                sample = first_logits if sample is None else sample
                head_error = max(head_error, error)
        assert sample is not None
        labels = beton.samples.labels
        correct = np.stack(predicted) == labels
        training = np.setdiff1d(np.arange(len(labels)), held_out)
        return CacheSummary(
            accuracy_training=correct[:, training].mean(axis=1).tolist(),
            accuracy_held_out=correct[:, held_out].mean(axis=1).tolist() if len(held_out) else [],
            num_wrong=int((~correct[0]).sum()),
            agreement=[float((classes == predicted[0]).mean()) for classes in predicted],
            fidelity=[_fidelity(sample, temperature=t) for t in FIDELITY_TEMPERATURES],
            head_error=head_error,
            target_in_sample=self.teacher.target_in_sample,
            teacher=self.teacher.description,
            seconds=time.monotonic() - started,
            device=self.runtime.description,
            versions=versions(),
        )

    @torch.inference_mode()
    def _view(self, view: int, bar: Progress) -> tuple[NDArray[np.int64], Tensor, float]:
        """Cache one view; return the top classes, some float32 logits and the head's error."""
        predicted, sample, head_error = [], [], 0.0
        num_sampled = 0
        for logits, features in self._outputs(view):
            self.writer.append(_numpy(logits), _numpy(features) if self._keeps_features else None)
            predicted.append(_numpy(logits.argmax(dim=1)))
            if num_sampled < FIDELITY_ROWS:
                sample.append(logits.cpu())
                num_sampled += len(logits)
                head_error = max(head_error, self._head_error(logits, features))
            bar.advance(len(logits), note=f"view {view}")
        self.writer.end_view()
        return np.concatenate(predicted), torch.cat(sample), head_error

    def _outputs(self, view: int) -> Iterator[tuple[Tensor, Tensor]]:
        normalise = Normaliser(
            mean=self.teacher.mean, std=self.teacher.std, device=self.runtime.device
        )
        for batch in self.loader.view(view):
            yield teacher_outputs(self.teacher.model, normalise, batch, runtime=self.runtime)

    @property
    def _keeps_features(self) -> bool:
        return self.writer.manifest.identity.features

    def _head_error(self, logits: Tensor, features: Tensor) -> float:
        """How far the head of the features *as stored* is from the logits.

        Raises:
            ArtefactMismatch: if the features are not the classifier's input.
        """
        head = self.teacher.model.head
        again = F.linear(features.half().float(), head.weight.float(), head.bias.float())
        error = (again - logits).abs().max().item()
        if error > HEAD_TOLERANCE * max(1.0, logits.abs().max().item()):
            raise ArtefactMismatch(
                f"the head of {self.teacher.description} does not give its logits from its "
                f"features: they differ by {error:.3g}. `features` must return the head's input."
            )
        return error


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


def _fidelity(logits: Tensor, *, temperature: float) -> Fidelity:
    """KL(float32 || float16) of softened probabilities."""
    exact = (logits.double() / temperature).log_softmax(dim=1)
    stored = (logits.half().double() / temperature).log_softmax(dim=1)
    kl = (exact.exp() * (exact - stored)).sum(dim=1).clamp_min(0.0)
    return Fidelity(temperature=temperature, mean_kl=kl.mean().item(), max_kl=kl.max().item())


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
