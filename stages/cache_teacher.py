"""cache-teacher: betons + teacher checkpoint -> teacher cache.

The teacher runs once over every view of the training beton and once over the test beton, each into
a cache of its own; nothing later needs its weights. Any number of workers may share the work.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.index import remember
from pipeline.artefacts.cache.receipts import MANIFEST, read_manifest
from pipeline.artefacts.cache.record import CacheIdentity, CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.transfer import copy_cache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.objects.remote import require_conditional_create
from pipeline.data.loaders import BatchLoader
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.provenance import short
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity
from stages.caches import cache_layout, cache_place, caches_of, is_sealed
from stages.config.root import Config
from stages.identities import cache_request
from stages.teacher import load_teacher
from stages.text import percent
from stages.views import view_spec

logger = logging.getLogger(__name__)


OwnShard: TypeAlias = Callable[[int], bool]
"""True for the number of a shard that this worker computes; the test images' come last."""


def execute(
    config: Config, *, shards: range | None = None, ranks: Ranks = ALONE
) -> TeacherCache | None:
    """Make the caches of both betons, fetch them, or say that they exist.

    Args:
        config: the configuration.
        shards: numbers of the shards to compute; None: all that are missing.
        ranks: the processes that share these out; the cache is the same for any number of them.
    Returns:
        The training cache; None while other workers' shards are missing.
    """
    dataset = Dataset.open(config.data_folder)
    runtime = resolve_runtime(config.cache_teacher.precision)
    teacher = load_teacher(config, dataset, runtime)
    job = _Job(config=config, dataset=dataset, teacher=teacher, runtime=runtime, ranks=ranks)
    mine = _mine(shards, ranks)
    views = view_spec(config.views)
    train = _Wanted.of(job, dataset.train, views)
    test = _Wanted.of(job, dataset.eval, views.clean)
    remember(
        config.caches_folder,
        request=cache_request(config, dataset),
        train=train.identity.id,
        test=test.identity.id,
    )
    first_of_test = train.num_units(config)
    _require_shards(shards, first_of_test + test.num_units(config))
    cached = _cache(job, train, mine=mine)
    tested = _cache(job, test, mine=None if mine is None else lambda n: mine(first_of_test + n))
    if tested is not None:
        logger.info("teacher accuracy on the test images: %.2f %%", 100 * _accuracy(tested))
    return cached


@dataclass(frozen=True, kw_only=True)
class _Job:
    config: Config
    dataset: Dataset
    teacher: Teacher
    runtime: Runtime
    ranks: Ranks


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A cache that should exist."""

    beton: Beton
    views: Views
    identity: CacheIdentity
    layout: CacheLayout

    @classmethod
    def of(cls, job: _Job, beton: Beton, views: Views) -> Self:
        settings, head = job.config.cache_teacher, job.teacher.model.head
        identity = cache_identity(
            job.teacher,
            beton=beton,
            views=views,
            runtime=job.runtime,
            kept=settings.produce(KeptOutputs),
        )
        layout = cache_layout(
            settings, num_classes=head.out_features, num_features=head.in_features
        )
        return cls(beton=beton, views=views, identity=identity, layout=layout)

    def num_units(self, config: Config) -> int:
        """Shards of all views; a cache that was begun keeps its own shard size."""
        layout = self.layout
        place = cache_place(caches_of(config), self.identity.id)
        if place.size(MANIFEST) is not None:
            layout = read_manifest(place).layout
        return (self.views.num_views + 1) * -(-self.beton.num_samples // layout.shard_rows)


def _require_shards(shards: range | None, total: int) -> None:
    if shards is not None and shards.start >= total:
        raise ConfigError(
            f"--shard-range {shards.start}:{shards.stop} is beyond the last shard (expected "
            f"numbers below {total})."
        )


def _mine(shards: range | None, ranks: Ranks) -> OwnShard | None:
    """The share of this process."""
    if shards is None and not ranks.are_many:
        return None
    wanted = range(sys.maxsize) if shards is None else shards
    return lambda number: number in wanted and number % ranks.world == ranks.rank


def _cache(job: _Job, wanted: _Wanted, *, mine: OwnShard | None) -> TeacherCache | None:
    """The cache of one beton: found, fetched, or made now as far as it is this job's."""
    place, ranks = cache_place(caches_of(job.config), wanted.identity.id), job.ranks
    if ranks.any(is_sealed(place)):
        cache = TeacherCache.open(place)
        _require_id(cache, wanted.identity)
        logger.info("%s exists: %s, nothing to do", cache.path, describe(cache))
        return cache
    require_conditional_create(caches_of(job.config))
    fetched = _fetched(job.config, wanted.identity, place) if ranks.is_first else None
    if ranks.any(fetched is not None):
        return fetched or TeacherCache.open(place)
    left = _computed(job, wanted, mine=mine, place=place)
    ranks.wait()  # the last of them to finish has sealed it
    if left and not is_sealed(place):
        logger.info("%s is not complete: %d shards of other workers are left", place.url, left)
        return None
    cache = TeacherCache.open(place)
    logger.info("%s: %s", cache.path, describe(cache))
    return cache


def _computed(job: _Job, wanted: _Wanted, *, mine: OwnShard | None, place: ObjectStore) -> int:
    """Compute this process's share; how many shards were left at the end of it."""
    planned = TeacherPass(
        teacher=job.teacher,
        loader=_loader(job, wanted),
        beton=wanted.beton,
        views=wanted.views,
        runtime=job.runtime,
        held_out=_held_out(job.dataset, wanted.beton),
    )
    return cache_views(
        place,
        planned,
        identity=wanted.identity,
        layout=wanted.layout,
        share=None
        if mine is None
        else lambda units: [unit for number, unit in enumerate(units) if mine(number)],
    )


def _loader(job: _Job, wanted: _Wanted) -> BatchLoader:
    settings = job.config.cache_teacher
    return BatchLoader(
        wanted.beton,
        batch_size=settings.batch_size,
        view_spec=wanted.views,
        workers=job.runtime.loader_workers(settings.workers),
        device=job.runtime.device,
    )


def _held_out(dataset: Dataset, beton: Beton) -> NDArray[np.int64]:
    return dataset.held_out if beton is dataset.train else np.zeros(0, dtype=np.int64)


def _fetched(config: Config, identity: CacheIdentity, place: ObjectStore) -> TeacherCache | None:
    """The same cache from the team's place, if it lies there."""
    if not config.share:
        return None
    shared = cache_place(open_objects(config.share), identity.id)
    if not is_sealed(shared):
        logger.info(
            "%s has no cache %s (precision %s): the teacher runs here",
            config.share,
            short(identity.id),
            identity.precision,
        )
        return None
    if place.size(MANIFEST) is not None:
        logger.warning("%s was begun here and is completed here, not fetched", place.url)
        return None
    cache = TeacherCache.open(shared)
    _require_id(cache, identity)
    copy = copy_cache(cache, place)
    logger.info("%s fetched from %s: %s", copy.path, shared.url, describe(copy))
    return copy


def _require_id(cache: TeacherCache, identity: CacheIdentity) -> None:
    """A path carries the start of an id only."""
    if cache.id != identity.id:
        raise ArtefactMismatch(
            f"{cache.path} holds another teacher cache: id {cache.id} (expected {identity.id}). "
            "Choose another place."
        )


def _accuracy(cache: TeacherCache) -> float:
    return 1.0 - cache.summary.num_wrong / cache.shape.num_samples


def describe(cache: TeacherCache) -> str:
    """One line about a cache."""
    summary, shape = cache.summary, cache.shape
    held_out = "".join(f", held out {percent(a)}" for a in summary.accuracy_held_out[:1])
    per_view = "/".join(f"{100 * a:.1f}" for a in summary.accuracy_training)
    agree = "/".join(f"{100 * a:.1f}" for a in summary.agreement[1:])
    return (
        f"{summary.teacher}, {shape.num_views} views of {shape.num_samples:,} images, "
        f"accuracy per view {per_view} %{held_out}, {summary.num_wrong:,} wrong rows"
        + (f", agreement with the clean view {agree} %" if agree else "")
        + f", {summary.seconds:.1f} s, id {short(cache.id)}"
    )
