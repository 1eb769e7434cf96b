"""Sources of influence scores: the scored samples and the target's samples, from caches."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import Joined, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.influence.cached_rows import CachedFeatures, CachedSoftLabels, Labelling
from pipeline.influence.inputs import ScoredRows, Target, Targets
from pipeline.influence.repair import TeacherRows
from pipeline.methods.folds import stratified_folds, stratified_parts
from pipeline.methods.head.data import ProjectedRows, Rows, principal_components
from pipeline.provenance import short
from pipeline.runtime.ranks import Ranks
from stages.caches import Caches
from stages.identities import influence_target
from stages.selection.columns import CleanView

CHOOSING_PARTS = 5
"""Parts of the held-out samples: one part chooses l2, the others are the target of the scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """The scored samples, and the samples whose loss is predicted."""

    rows: ScoredRows
    targets: Targets
    target: str
    target_keys: NDArray[np.uint8]
    target_in_sample: bool

    @classmethod
    def of(
        cls, caches: Caches, cached: TeacherRows, inputs: CleanView, *, ranks: Ranks
    ) -> "Sources":
        """Open the sources of a configuration; every rank reads a part of them.

        Raises:
            ArtefactMismatch: if features are missing or constant, or a cache does not fit.
            ConfigError: if there are too few samples for its folds or parts.
        """
        return _Builder(caches, cached, inputs, ranks=ranks).sources()


class _Builder:
    """Collects the rows and targets of a configuration from its caches."""

    def __init__(
        self, caches: Caches, cached: TeacherRows, inputs: CleanView, *, ranks: Ranks
    ) -> None:
        config, dataset = caches.config.select, caches.dataset
        self._caches = caches
        self._config, self._settings, self._ranks = config, config.influence, ranks
        self._cached, self._dataset, self._inputs = cached, dataset, inputs
        self._target_kind = influence_target(config, cached.cache)
        self._seen = self._proxy() or cached
        self._views = self._scored_views()
        self._keys = dataset.train.samples.keys
        self._projection = self._components()

    def sources(self) -> Sources:
        settings, inputs = self._settings, self._inputs
        how = Labelling(
            revision=self._config.revision if settings.labels == "revised" else "none",
            eta=self._config.eta,
            temperature=settings.temperature,
        )
        training = inputs.training
        rows = ScoredRows(
            features=self._features(self._seen, self._views, training),
            soft_labels=CachedSoftLabels(
                cached=self._cached,
                views=self._views,
                samples=training,
                labels=inputs.labels,
                labelling=how,
            ),
            labels=inputs.labels[training],
            start=self._start(),
            clean=self._features(self._seen, (0,), training),
            folds=self._folds(),
            ranks=self._ranks,
        )
        targets, keys, in_sample = self._targets(rows)
        return Sources(
            rows=rows,
            targets=targets,
            target=self._target_kind,
            target_keys=keys,
            target_in_sample=in_sample,
        )

    def _proxy(self) -> HydratedCache | None:
        """The cache of another network's features of the same images, if one is named."""
        cache = self._caches.proxy
        if cache is None:
            return None
        cache.require_features()
        if cache.shape.num_classes != self._dataset.num_classes:
            raise ArtefactMismatch(
                f"{cache.path} has {cache.shape.num_classes} classes (expected "
                f"{self._dataset.num_classes}, as select.influence.proxy of "
                f"{self._dataset.folder}). Name the cache of a network with these classes."
            )
        samples = self._dataset.train.samples
        place, accept = str(self._dataset.train.path), self._config.accept_mismatch
        joined = join_samples(cache, samples, place=place, accept=accept)
        needed = torch.cat([self._inputs.training, self._inputs.held_out]).numpy()
        if not joined.known[needed].all():
            raise ArtefactMismatch(
                f"{cache.path} lacks {int((~joined.known[needed]).sum()):,} of the "
                f"{len(needed):,} images that are scored (expected all, as select.influence.proxy)."
                " Run `heartcut cache-teacher` for the proxy on this data."
            )
        return HydratedCache(cache=cache, joined=joined, folder=self._cached.folder)

    def _scored_views(self) -> tuple[int, ...]:
        if self._settings.views == "clean":
            return (0,)
        for cache in (self._cached.cache, self._seen.cache):
            if cache.shape.num_views == 1:
                raise ConfigError(
                    f"select.influence.views is 'augmented' and {cache.path} has the clean view "
                    'only. Set `select.influence.views = "clean"`, or cache views (`views.count`).'
                )
        if self._seen.cache.manifest.identity.views != self._cached.cache.manifest.identity.views:
            raise ArtefactMismatch(
                f"{self._seen.cache.path} has other views than {self._cached.cache.path} (expected "
                "the same, as select.influence.proxy). Cache both with the same `views`."
            )
        return tuple(range(1, self._cached.cache.shape.num_views))

    def _components(self) -> tuple[Tensor, Tensor] | None:
        """Centre and basis of the reduced features; None for all features."""
        rows = CachedFeatures.of(self._seen, (0,), self._inputs.training)
        self._require_variance(rows)
        wanted = self._settings.pca
        if wanted is None:
            return None
        if wanted > rows.shape[2]:
            raise ConfigError(
                f"select.influence.pca is {wanted} and {self._seen.cache.path} has {rows.shape[2]} "
                f"features (expected at most {rows.shape[2]}). Lower `select.influence.pca`."
            )
        return principal_components(rows, num_components=wanted, sharing=self._ranks)

    def _require_variance(self, rows: CachedFeatures) -> None:
        first = rows.read(slice(0, min(rows.shape[1], 4096)))[0].float()
        if not bool(torch.isfinite(first).all()) or float(first.std(dim=0).max()) == 0.0:
            what = "the same in every row" if torch.isfinite(first).all() else "not all finite"
            raise ArtefactMismatch(
                f"{self._seen.cache.path} has features that are {what} (expected finite numbers "
                "that differ). Cache the teacher again, and look at its penultimate layer."
            )

    def _features(self, cached: TeacherRows, views: tuple[int, ...], samples: Tensor) -> Rows:
        rows = CachedFeatures.of(cached, views, samples)
        if self._projection is None:
            return rows
        centre, basis = self._projection
        return ProjectedRows(rows=rows, centre=centre, basis=basis)

    def _start(self) -> Tensor:
        """The head of the network whose features are read, in the space of the features."""
        weight, bias = (torch.from_numpy(part).double() for part in self._seen.cache.head)
        if self._projection is not None:
            centre, basis = self._projection
            weight, bias = weight @ basis, bias + weight @ centre
        return torch.cat([weight, bias[:, None]], dim=1)

    def _folds(self) -> Tensor | None:
        """Folds of the training samples; None if no head is fitted to a part of them."""
        if self._target_kind != "cross-fit" and not self._settings.label_issues:
            return None
        training = self._inputs.training
        try:
            folds = stratified_folds(
                self._inputs.labels[training].numpy(),
                self._keys[training.numpy()],
                num_folds=self._settings.folds,
                seed=self._config.seed,
            )
        except ValueError as error:
            raise ConfigError(
                f"{self._cached.cache.path} has {len(training):,} training samples, too few for "
                f"{self._settings.folds} folds: {error}. Lower `select.influence.folds`, set "
                "`select.influence.label_issues = false`, or choose another `select.strategy`."
            ) from error
        return torch.from_numpy(folds)

    def _targets(self, rows: ScoredRows) -> tuple[Targets, NDArray[np.uint8], bool]:
        """The targets, the keys of their samples, and True if the teacher was trained on them."""
        held_out, own = self._inputs.held_out, (self._inputs.labels, self._keys)
        if self._target_kind == "cross-fit":
            assert rows.folds is not None, "the target is cut along them"
            folded = Target(
                features=rows.clean,
                labels=rows.labels,
                groups=self._groups_of_folds(rows.folds),
                ranks=self._ranks,
            )
            choosing = self._choosing_target(held_out)
            targets = Targets(target=folded, folds=rows.folds, choosing=choosing)
            return targets, self._keys[self._inputs.training.numpy()], True
        if self._target_kind == "external":
            outside, keys = self._external()
            return Targets(target=outside, choosing=self._choosing_target(held_out)), keys, False
        chooses = self._choosing(held_out)
        targets = Targets(
            target=self._target(self._seen, held_out[~chooses], *own),
            choosing=self._choosing_target(held_out[chooses]),
        )
        in_sample = self._cached.cache.summary.target_in_sample
        return targets, self._keys[held_out[~chooses].numpy()], in_sample

    def _choosing_target(self, samples: Tensor) -> Target:
        """Held-out samples that are used for their loss only."""
        features = self._features(self._seen, (0,), samples)
        return Target(features=features, labels=self._inputs.labels[samples], ranks=self._ranks)

    def _groups_of_folds(self, folds: Tensor) -> Tensor | None:
        """The parts of every fold for its standard errors, (N,) int64."""
        training, groups = self._inputs.training, torch.empty_like(folds)
        for fold in range(self._settings.folds):
            parts = self._groups(training[folds == fold], self._inputs.labels, self._keys)
            if parts is None:
                return None
            groups[folds == fold] = parts
        return groups

    def _choosing(self, held_out: Tensor) -> Tensor:
        """True for held-out samples that choose l2, (M,); none if l2 is given."""
        if self._settings.l2 != "auto":
            return torch.zeros(len(held_out), dtype=torch.bool)
        if len(held_out) < 2 * CHOOSING_PARTS:
            raise ConfigError(
                f"{self._cached.cache.path} has {len(held_out):,} held-out samples (expected at "
                f"least {2 * CHOOSING_PARTS} to choose l2 with a part of them). Raise "
                "`prepare.held_out_fraction`, or set a number for `select.influence.l2`."
            )
        labels, keys = self._inputs.labels, self._keys
        return _parts(held_out, labels, keys, num_parts=CHOOSING_PARTS) == 0

    def _target(
        self, cached: TeacherRows, samples: Tensor, labels: Tensor, keys: NDArray[np.uint8]
    ) -> Target:
        return Target(
            features=self._features(cached, (0,), samples),
            labels=labels[samples],
            groups=self._groups(samples, labels, keys),
            ranks=self._ranks,
        )

    def _groups(self, samples: Tensor, labels: Tensor, keys: NDArray[np.uint8]) -> Tensor | None:
        """The parts of a target for its standard errors, (M,) int64; None for no errors."""
        # At least two samples a group: a small target has fewer groups, or no errors.
        num_groups = min(self._settings.standard_error_groups, len(samples) // 2)
        return _parts(samples, labels, keys, num_parts=num_groups) if num_groups > 1 else None

    def _external(self) -> tuple[Target, NDArray[np.uint8]]:
        """The samples of another cache of the same network."""
        cache = self._caches.external
        assert cache is not None, "checked by the configuration"
        _require_target(
            cache,
            own=self._seen.cache,
            dataset=self._dataset,
            inputs=self._inputs,
            chooses_l2=self._settings.l2 == "auto",
        )
        rows = np.arange(cache.shape.num_samples)
        joined = Joined(rows=rows, accepted=())
        outside = HydratedCache(cache=cache, joined=joined, folder=self._cached.folder)
        labels = torch.from_numpy(np.ascontiguousarray(cache.labels))
        return self._target(outside, torch.from_numpy(rows), labels, cache.keys), cache.keys


def _parts(samples: Tensor, labels: Tensor, keys: NDArray[np.uint8], *, num_parts: int) -> Tensor:
    """The part of each of some samples, (M,) int64."""
    own, rows = labels[samples].numpy(), keys[samples.numpy()]
    return torch.from_numpy(stratified_parts(own, rows, num_parts=num_parts, seed=0))


def _require_target(
    cache: TeacherCache, *, own: TeacherCache, dataset: Dataset, inputs: CleanView, chooses_l2: bool
) -> None:
    """Reject a cache that cannot be the target of scores of the network of ``own``.

    Raises:
        ArtefactMismatch: if another network made it, or if it has a scored image, an image that
            chooses l2, or a test image.
    """
    cache.require_features()
    if cache.manifest.identity.weights != own.manifest.identity.weights:
        raise ArtefactMismatch(
            f"{cache.path} was made by another network than {own.path}: weights "
            f"{short(cache.manifest.identity.weights)} (expected "
            f"{short(own.manifest.identity.weights)}). Cache the target with the same network."
        )
    _require_apart(cache, dataset, inputs, chooses_l2=chooses_l2)


def _require_apart(
    cache: TeacherCache, dataset: Dataset, inputs: CleanView, *, chooses_l2: bool
) -> None:
    """Require that no sample of the target is scored, chooses l2, or is a test image."""
    keys, test = dataset.train.samples.keys, dataset.eval.samples.keys
    forbidden = [
        ("training", keys[inputs.training.numpy()], "they are scored"),
        ("test", test, "the test would not be independent"),
    ]
    if chooses_l2:
        choosing = keys[inputs.held_out.numpy()]
        forbidden.append(("held-out", choosing, "they choose l2"))
    for name, others, because in forbidden:
        shared = len(_texts(cache.keys) & _texts(others))
        if shared:
            raise ArtefactMismatch(
                f"{cache.path} has {shared:,} of the {name} images of {dataset.folder} "
                f"(expected none as select.influence.external: {because}). Choose other images."
            )


def _texts(keys: NDArray[np.uint8]) -> set[bytes]:
    return {key.tobytes() for key in keys}
