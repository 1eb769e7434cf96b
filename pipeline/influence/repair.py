"""Repair of the teacher's classifier from its cache.

The classifier is a linear map of the cached features, so it can be refitted to the training labels
without the network. Its L2 weight is chosen on held-out rows. It is cross-fitted, so no sample gets
a soft label from a head that was fitted to its own label. The logits of every view then come from
these heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.artefacts.cache.hydration import HydratedCache, LogitBlock
from pipeline.artefacts.cache.join import Joined
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.soft_labels import HeadQuality, RepairReport
from pipeline.errors import ConfigError, PipelineError
from pipeline.influence.cross_fit import CrossFit, L2Choice, choose_l2, cross_fit, l2_grid
from pipeline.influence.head_progress import HeadProgress
from pipeline.methods.folds import stratified_folds, stratified_parts
from pipeline.methods.head.data import read_rows, runs
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.rows import with_bias_input
from pipeline.methods.head.solver import NotConverged, with_precision
from pipeline.methods.metrics import evaluate_logits
from pipeline.provenance import array_sha256
from pipeline.runtime.progress import progress
from pipeline.runtime.ranks import ALONE, Ranks

CLEAN = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairedCache:
    """A cache with logits of the refitted heads; everything else is unchanged.

    Logits are float32, because they are computed when needed and never stored.
    """

    cached: HydratedCache
    heads: CrossFit
    folds: Tensor
    """Fold of every sample, (N,) int64; -1 if no head is fitted to it."""
    report: RepairReport

    @property
    def cache(self) -> TeacherCache:
        return self.cached.cache

    @property
    def joined(self) -> Joined:
        return self.cached.joined

    @property
    def folder(self) -> Path:
        return self.cached.folder

    @property
    def num_samples(self) -> int:
        return self.cached.num_samples

    def features(self, view: int) -> NDArray[np.float16]:
        """Penultimate features of one view, as `HydratedCache.features`."""
        return self.cached.features(view)

    def logits(self, view: int, *, temperature: float) -> Tensor:
        """Logits of one view, (N, C) float32; ``temperature`` is ignored."""
        return torch.cat(
            [block.logits for block in self.logit_blocks(view, temperature=temperature)]
        )

    def logit_blocks(self, view: int, *, temperature: float) -> Iterator[LogitBlock]:
        """Logits of one view, a shard's worth of samples at a time; all classes, even if the
        cache keeps only the teacher's top k."""
        del temperature  # all logits are known, so any temperature is possible
        yield from _blocks(self.cached, self.heads, self.folds, view=view)

    def logit_rows(self, view: int, samples: Tensor, *, temperature: float) -> Tensor:
        """Logits of some samples in one view, (n, C) float32; ``temperature`` is ignored."""
        del temperature
        features = torch.from_numpy(self.features(view))[samples]
        return self.heads.logits_of(features, self.folds[samples])


TeacherRows: TypeAlias = HydratedCache | RepairedCache
"""A cache in the order of a data set, with the teacher's own logits or repaired ones."""


def repair_head(
    cached: HydratedCache, dataset: Dataset, *, num_folds: int, seed: int, ranks: Ranks = ALONE
) -> RepairedCache:
    """Refit the teacher's classifier to the training rows' labels, on the clean view.

    L2 is chosen by the loss on one half of the held-out rows; the report compares the old and the
    new head on the other half.

    Args:
        cached: a teacher cache with features, in the order of ``dataset``.
        dataset: the data set whose labels are fitted.
        num_folds: folds of the cross-fit.
        seed: seed of the folds and of the halves.
        ranks: ranks that each read a part of the fitted rows; every rank gets the result.
    Raises:
        ArtefactMismatch: if the cache has no features.
        ConfigError: if there are too few rows to cut into folds or halves.
        PipelineError: if a head cannot be fitted.
    """
    rows = _Rows.of(cached, dataset, num_folds=num_folds, seed=seed)
    features = torch.from_numpy(cached.features(CLEAN))
    start = _teacher_head(cached.cache)
    every = HeadProblem(features=features[None], labels=rows.labels, l2=1.0, sharing=ranks)
    num_classes, num_inputs = start.shape
    grid = l2_grid(every.num_rows, num_classes=num_classes, num_features=num_inputs - 1)
    try:
        with progress("head repair", total=len(grid) + num_folds + 1, unit="heads") as bar:
            watched = replace(every, watch=HeadProgress(bar, name="training samples"))
            choice = _choose(watched, rows, start, grid=grid)
            heads = cross_fit(replace(watched, l2=choice.l2), folds=rows.folds, start=start)
    except NotConverged as error:
        raise PipelineError(f"the teacher's head cannot be repaired: {error}") from error
    report = RepairReport(
        before=_quality(cached.logit_blocks(CLEAN, temperature=1.0), rows),
        after=_quality(_blocks(cached, heads, rows.folds, view=CLEAN), rows),
        num_held_out=(len(rows.deciding), len(rows.reported)),
        l2=choice.l2,
        tried=choice.losses,
        folds=num_folds,
        seed=seed,
        gradient_norm=heads.gradient_norm,
        weights=array_sha256(torch.cat([heads.weights, heads.overall[None]]).numpy()),
    )
    return RepairedCache(cached=cached, heads=heads, folds=rows.folds, report=report)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Roles of the samples: training rows by fold, and two halves of the held-out rows."""

    labels: Tensor
    """Class ids of all samples, (N,) int64."""
    folds: Tensor
    """Folds of the training rows, (N,) int64; -1 for other rows."""
    deciding: Tensor
    """Held-out sample indices that l2 is chosen on."""
    reported: Tensor
    """The other held-out sample indices."""

    @classmethod
    def of(cls, cached: HydratedCache, dataset: Dataset, *, num_folds: int, seed: int) -> "_Rows":
        samples, known = dataset.train.samples, cached.joined.known
        training = dataset.training[known[dataset.training]]
        held_out = dataset.held_out[known[dataset.held_out]]
        folds = np.full(len(samples), -1)
        try:
            folds[training] = stratified_folds(
                samples.labels[training], samples.keys[training], num_folds=num_folds, seed=seed
            )
            halves = stratified_parts(
                samples.labels[held_out], samples.keys[held_out], num_parts=2, seed=seed
            )
        except ValueError as error:
            raise ConfigError(
                f"{cached.cache.path} has {len(training):,} training and {len(held_out):,} "
                f"held-out rows, too few to repair the head: {error}. "
                'Set `select.repair = "none"`, or use more images.'
            ) from error
        return cls(
            labels=torch.from_numpy(samples.labels),
            folds=torch.from_numpy(folds),
            deciding=torch.from_numpy(held_out[halves == 0]),
            reported=torch.from_numpy(held_out[halves == 1]),
        )

    @property
    def training(self) -> Tensor:
        return (self.folds >= 0).nonzero().squeeze(1)


def _teacher_head(cache: TeacherCache) -> Tensor:
    """W, (C, D + 1) float64."""
    weight, bias = cache.head
    return torch.cat([torch.from_numpy(weight), torch.from_numpy(bias)[:, None]], dim=1).double()


def _choose(every: HeadProblem, rows: _Rows, start: Tensor, *, grid: tuple[float, ...]) -> L2Choice:
    """Choose the L2 weight whose head of all training rows fits the deciding rows best."""
    inputs = with_bias_input(read_rows(every.features, rows.deciding)[0].double())
    labels = rows.labels[rows.deciding]
    read = with_precision(every.part(rows.training), num_classes=len(start))
    return choose_l2(
        lambda l2: replace(read, l2=l2),
        lambda weight: F.cross_entropy(inputs @ weight.T, labels).item(),
        start,
        grid=grid,
    )


def _blocks(
    cached: HydratedCache, heads: CrossFit, folds: Tensor, *, view: int
) -> Iterator[LogitBlock]:
    """Logits of one view by the heads, a shard's worth of samples at a time."""
    features = torch.from_numpy(cached.features(view))
    size = cached.cache.manifest.layout.shard_rows
    for samples in runs(slice(0, cached.num_samples), size=size):
        logits = heads.logits_of(features[samples], folds[samples])
        yield LogitBlock(samples=samples, logits=logits, classes=None)


def _quality(blocks: Iterator[LogitBlock], rows: _Rows) -> HeadQuality:
    """Quality of the logits of the clean view."""
    is_reported = torch.zeros(len(rows.labels), dtype=torch.bool)
    is_reported[rows.reported] = True
    reported, num_wrong = [], 0
    for block in blocks:
        own = block.logits.gather(1, rows.labels[block.samples, None]).squeeze(1)
        is_wrong = own < block.logits.amax(dim=1)
        num_wrong += int((is_wrong & (rows.folds[block.samples] >= 0)).sum())
        reported.append(block.logits[is_reported[block.samples]].float())
    held_out = evaluate_logits(torch.cat(reported), rows.labels[is_reported])
    return HeadQuality(
        accuracy=held_out.accuracy,
        loss=held_out.loss,
        calibration_error=held_out.calibration_error,
        num_wrong=num_wrong,
    )
