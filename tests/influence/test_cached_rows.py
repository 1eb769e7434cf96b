"""Rows read from a cache are those of the same tensors in memory, however they are read."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.influence.cached_rows import CachedFeatures, CachedSoftLabels, Labelling
from pipeline.influence.inputs import Target, Targets
from pipeline.methods.head.data import PickedRows, ProjectedRows, principal_components, read_rows
from pipeline.methods.head.influence import heldout_gradient, score_rows
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.label_revision import soft_labels
from tests.support.cases import looped
from tests.support.small_caches import NUM_FEATURES, sealed_cache, some_samples

NUM_CACHED, NUM_CLASSES, NUM_VIEWS = 41, 5, 3
ORDER = np.random.default_rng(3).permutation(NUM_CACHED)[:37]
SCORED = torch.tensor([row for row in range(37) if row % 4 != 1])
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some samples of a data set in another order than the cache, and the same in memory."""

    cached: HydratedCache
    labels: Tensor
    top_k: int

    @classmethod
    def of(cls, folder, *, top_k: int) -> "Case":
        samples = some_samples(NUM_CACHED)
        cache = sealed_cache(folder / "cache", samples, num_views=NUM_VIEWS, top_k=top_k)
        here = samples.rows(ORDER)
        joined = join_samples(cache, here, place="here")
        assert (joined.rows == ORDER).all()
        cached = HydratedCache(cache=cache, joined=joined, folder=folder)
        return cls(cached=cached, labels=torch.from_numpy(here.labels), top_k=top_k)

    def from_the_cache(self, views, how: Labelling, **settings) -> HeadProblem:
        own = {"cached": self.cached, "views": views, "samples": SCORED, "labels": self.labels}
        return HeadProblem(
            features=CachedFeatures.of(self.cached, views, SCORED),
            soft_labels=CachedSoftLabels(**own, labelling=how),
            **self._settings | {"temperature": how.temperature} | settings,
        )

    def in_memory(self, views, how: Labelling) -> HeadProblem:
        rows = ORDER[SCORED.numpy()]
        cache, labels = self.cached.cache, self.labels[SCORED]
        features = np.stack([cache.features(view)[rows] for view in views])
        soft = [
            soft_labels(
                self.logits(view, how)[SCORED],
                labels,
                revision=how.revision,
                eta=how.eta,
                temperature=how.temperature,
            )
            for view in views
        ]
        return HeadProblem(
            features=torch.from_numpy(features),
            soft_labels=torch.stack(soft),
            **self._settings | {"temperature": how.temperature},
        )

    def logits(self, view: int, how: Labelling) -> Tensor:
        """Logits of all samples in a view."""
        if self.top_k:
            return self.cached.logits(view, temperature=how.temperature)
        return torch.from_numpy(self.cached.cache.logits(view)[ORDER])

    @property
    def _settings(self) -> dict:
        return {
            "labels": self.labels[SCORED],
            "distilled": (torch.arange(len(SCORED)) % 3 > 0).double(),
            "kd_weight": 0.7,
            "l2": 1e-2,
        }


@pytest.fixture(scope="module", params=[0, 2], ids=["dense", "top 2"])
def case(request, tmp_path_factory) -> Case:
    return Case.of(tmp_path_factory.mktemp("rows"), top_k=request.param)


def a_head(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_CLASSES, NUM_FEATURES + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@looped("rows_per_chunk", [1, 5, 4096])
@looped("views", [(0,), (1, 2)])
@looped("how", [("none", 1.0), ("all", 4.0), ("wrong", 4.0)])
def test_a_problem_on_the_disk_is_that_in_memory(case, how, views, rows_per_chunk):
    labelling = Labelling(revision=how[0], eta=0.8, temperature=how[1])
    here = case.in_memory(views, labelling)
    there = case.from_the_cache(views, labelling, rows_per_chunk=rows_per_chunk)
    weight, direction = a_head(), a_head(1)
    assert there.loss(weight) == pytest.approx(here.loss(weight), rel=1e-12)
    assert_close(there.gradient(weight), here.gradient(weight), **CLOSE)
    assert_close(there.hvp(weight, direction), here.hvp(weight, direction), **CLOSE)
    ours, theirs = (score_rows(one.linearise(weight), direction) for one in (there, here))
    for name in ("dloss_undistill", "dloss_swap", "dloss_remove"):
        assert_close(getattr(ours, name).mean, getattr(theirs, name).mean, **CLOSE)
        assert_close(getattr(ours, name).std, getattr(theirs, name).std, rtol=1e-9, atol=1e-12)


def test_a_part_of_a_problem_on_the_disk_is_that_in_memory(case):
    labelling = Labelling(revision="none", eta=0.8, temperature=1.0)
    some = torch.tensor([0, 3, 4, 11, 25])
    here = case.in_memory((1, 2), labelling).part(some)
    there = case.from_the_cache((1, 2), labelling, rows_per_chunk=2).part(some)
    assert_close(there.gradient(a_head()), here.gradient(a_head()), **CLOSE)


def features_of(case: Case) -> tuple[CachedFeatures, Tensor]:
    rows = torch.from_numpy(case.cached.cache.features(0)[ORDER[SCORED.numpy()]]).double()
    return CachedFeatures.of(case.cached, (0,), SCORED), rows


def test_projected_rows_are_those_of_a_singular_value_decomposition(case):
    streamed, rows = features_of(case)
    centre, basis = principal_components(streamed, num_components=2, rows_per_chunk=6)
    assert_close(centre, rows.mean(dim=0), **CLOSE)
    _, _, directions = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    assert_close((basis.T @ directions[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-9)
    projected = ProjectedRows(rows=streamed, centre=centre, basis=basis)
    expected = (rows - centre) @ basis
    assert_close(read_rows(projected, slice(3, 9))[0], expected[3:9], **CLOSE)
    assert projected.shape == (1, len(SCORED), 2)


def test_a_target_and_its_groups_are_their_plain_means(case):
    streamed, rows = features_of(case)
    labels, weight = case.labels[SCORED], a_head()
    groups = torch.arange(len(SCORED)) % 3
    target = Target(features=streamed, labels=labels, groups=groups)
    logits = torch.cat([rows, torch.ones(len(rows), 1).double()], dim=1) @ weight.T
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert_close(target.losses(weight), losses, **CLOSE)
    assert target.loss(weight) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert_close(target.gradient(weight), heldout_gradient(weight, rows, labels), **CLOSE)
    for group, gradient in enumerate(target.group_gradients(weight)):
        own = groups == group
        assert_close(gradient, heldout_gradient(weight, rows[own], labels[own]), **CLOSE)
    assert_close(target.as_problem().gradient(weight), target.gradient(weight), **CLOSE)
    picked = torch.tensor([1, 2, 17])
    some = target.part(picked)
    assert (len(some), some.groups.tolist()) == (3, groups[picked].tolist())
    assert Target(features=streamed, labels=labels).group_gradients(weight) is None


def test_the_folds_of_a_target_are_held_against_the_others(case):
    streamed, _ = features_of(case)
    labels = case.labels[SCORED]
    target, folds = Target(features=streamed, labels=labels), torch.arange(len(SCORED)) % 3
    seen = torch.zeros(len(SCORED), dtype=torch.int64)
    for fold, (positions, part) in enumerate(
        Targets(target=target, folds=folds, choosing=target).each(len(SCORED))
    ):
        assert isinstance(part.features, PickedRows)
        assert set(part.features.samples.tolist()) | set(positions.tolist()) == set(
            range(len(folds))
        )
        assert not set(part.features.samples.tolist()) & set(positions.tolist())
        assert (folds[part.features.samples] == fold).all()
        assert torch.equal(part.labels, labels[folds == fold])
        seen[positions] += 1
    assert (seen == 2).all()
    ((everyone, same),) = Targets(target=target, choosing=target).each(7)
    assert everyone.tolist() == list(range(7))
    assert same is target
