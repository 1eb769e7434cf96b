"""cache-teacher: betons + teacher checkpoint -> teacher cache.

The teacher runs once over every view of the training beton and once over the test beton, each into
a cache of its own; nothing later needs its weights.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts import teacher_cache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.run import Run
from pipeline.artefacts.teacher_cache import (
    CacheContents,
    CacheIdentity,
    CacheShape,
    CacheSummary,
    CacheWriter,
    Fidelity,
    TeacherCache,
)
from pipeline.data.loaders import Batch, BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch
from pipeline.models import Classifier
from pipeline.models.checkpoints import load_into, load_weights, weights_digest
from pipeline.models.zoo import build
from pipeline.progress import Progress, progress
from pipeline.provenance import short
from pipeline.runtime import Runtime, resolve_runtime, versions
from pipeline.training import Normaliser
from stages.configs import Config
from stages.requests import cache_request, teacher_run_path, view_spec

logger = logging.getLogger(__name__)

FIDELITY_ROWS = 4096
FIDELITY_TEMPERATURES = (1.0, 4.0)
HEAD_TOLERANCE = 0.02
"""Share of the largest logit by which the head of the stored features may miss a logit."""


def execute(config: Config) -> TeacherCache:
    """Make the caches of both betons, or say that they exist; return the training one."""
    dataset = Dataset.open(config.data_folder)
    runtime = resolve_runtime(config.cache_teacher.precision)
    teacher = _load_teacher(config, dataset, runtime)
    train = _cache(config, dataset, teacher, runtime, dataset.train, view_spec(config.views))
    test = _cache(config, dataset, teacher, runtime, dataset.eval, ViewSpec())
    teacher_cache.remember(
        config.caches_folder, request=cache_request(config, dataset), train=train.id, test=test.id
    )
    logger.info("teacher accuracy on the test images: %.2f %%", 100 * _accuracy(test))
    return train


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    model: Classifier
    digest: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    target_in_sample: bool
    description: str


def _load_teacher(config: Config, dataset: Dataset, runtime: Runtime) -> _Teacher:
    """The frozen teacher: a checkpoint, or our own run."""
    settings = config.cache_teacher
    if settings.checkpoint is None:
        run = Run.open(teacher_run_path(config, dataset))
        source, arch = run.weights, run.result.arch
        mean, std = run.result.mean, run.result.std
        in_sample = run.result.held_out != dataset.held_out_digest
        description = f"{arch} of {run.path.name}"
    else:
        source, arch = settings.checkpoint, settings.arch
        mean, std = settings.mean or dataset.record.mean, settings.std or dataset.record.std
        in_sample = settings.trained_on_held_out
        description = f"{arch} of {settings.checkpoint.name}"
    weights = load_weights(source)
    model = build(arch, num_classes=dataset.num_classes)
    load_into(model, weights, source=source)
    model = model.eval().requires_grad_(False).to(runtime.device)
    return _Teacher(
        model=model.to(memory_format=torch.channels_last),
        digest=weights_digest(weights),
        mean=mean,
        std=std,
        target_in_sample=in_sample,
        description=description,
    )


def _cache(
    config: Config,
    dataset: Dataset,
    teacher: _Teacher,
    runtime: Runtime,
    beton: Beton,
    views: ViewSpec,
) -> TeacherCache:
    """The cache of one beton, made now or found."""
    identity = CacheIdentity(
        weights=teacher.digest,
        arch=teacher.model.arch,
        fingerprint=beton.record.fingerprint,
        pixel_digest=beton.record.pixel_digest,
        mean=teacher.mean,
        std=teacher.std,
        views=views.as_json(),
        precision=runtime.precision,
        features=config.cache_teacher.features,
    )
    path = teacher_cache.cache_path(config.caches_folder, identity.id)
    if path.exists():
        cache = TeacherCache.open(path)
        _require_same_rows(cache, beton)
        logger.info("%s exists: %s, nothing to do", path, _describe(cache))
        return cache
    shape = CacheShape(
        num_views=views.num_views + 1,
        num_samples=beton.num_samples,
        num_classes=teacher.model.head.out_features,
        num_features=teacher.model.head.in_features,
    )
    contents = CacheContents(
        labels=beton.samples.labels,
        keys=beton.samples.keys,
        head_weight=_numpy(teacher.model.head.weight),
        head_bias=_numpy(teacher.model.head.bias),
    )
    loader = BatchLoader(
        beton,
        batch_size=config.cache_teacher.batch_size,
        view_spec=views,
        workers=config.cache_teacher.workers,
    )
    with teacher_cache.create(path, identity=identity, shape=shape, contents=contents) as unsealed:
        pass_ = _Pass(teacher=teacher, runtime=runtime, loader=loader, writer=unsealed.writer)
        held_out = dataset.held_out if beton is dataset.train else np.zeros(0, dtype=np.int64)
        unsealed.seal(pass_.run(shape.num_views, beton=beton, held_out=held_out))
    cache = TeacherCache.open(path)
    logger.info("%s: %s", path, _describe(cache))
    return cache


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One run of the teacher over all views of a beton."""

    teacher: _Teacher
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


def _require_same_rows(cache: TeacherCache, beton: Beton) -> None:
    """The same images in another order are the same data set, but other rows."""
    if not np.array_equal(cache.keys, beton.samples.keys):
        raise ArtefactMismatch(
            f"{cache.path} has the samples of {beton.path} in another order. Prepare the images "
            "again, so that they lie in canonical order."
        )


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _accuracy(cache: TeacherCache) -> float:
    return 1.0 - cache.summary.num_wrong / cache.shape.num_samples


def _describe(cache: TeacherCache) -> str:
    summary, shape = cache.summary, cache.shape
    held_out = "".join(f", held out {100 * a:.2f} %" for a in summary.accuracy_held_out[:1])
    per_view = "/".join(f"{100 * a:.1f}" for a in summary.accuracy_training)
    agree = "/".join(f"{100 * a:.1f}" for a in summary.agreement[1:])
    return (
        f"{summary.teacher}, {shape.num_views} views of {shape.num_samples:,} images, "
        f"accuracy per view {per_view} %{held_out}, {summary.num_wrong:,} wrong rows"
        + (f", agreement with the clean view {agree} %" if agree else "")
        + f", {summary.seconds:.1f} s, id {short(cache.id)}"
    )
