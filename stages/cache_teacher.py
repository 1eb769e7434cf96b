"""cache-teacher: betons + teacher checkpoint -> teacher cache.

The teacher runs once over every view of the training beton and once over the test beton, and each
beton gets its own cache. No later stage needs the teacher. Several workers can share the work.
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
from pipeline.artefacts.unfinished_rows import UNFINISHED, UnfinishedRows
from pipeline.data.loaders import BatchLoader
from pipeline.data.view_specs import Views
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.provenance import short
from pipeline.runtime.device import Runtime, resolve_runtime, versions
from pipeline.runtime.memory import reuse_freed_memory
from pipeline.runtime.ranks import ALONE, Ranks
from pipeline.teacher.batches import fitting_batch
from pipeline.teacher.caching import TeacherPass, cache_views
from pipeline.teacher.frozen import KeptOutputs, Teacher, cache_identity
from pipeline.teacher.stored_outputs import require_same_network
from stages.caches import cache_layout, cache_place, caches_of, is_sealed
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.identities import cache_request
from stages.teacher import load_teacher
from stages.teacher_check import check_teacher
from stages.text import counted, duration, percent
from stages.views import seen_size, view_spec

logger = logging.getLogger(__name__)


OwnShard: TypeAlias = Callable[[int], bool]
"""True for the number of a shard that this worker computes; shards of the test images come last."""


@with_complete_commands
def execute(
    config: Config, *, shards: range | None = None, ranks: Ranks = ALONE
) -> TeacherCache | None:
    """Compute the caches of both betons, or fetch them, unless they exist.

    Args:
        config: the configuration.
        shards: numbers of the shards to compute; None: all missing ones.
        ranks: the processes that share the work; the cache is the same for any number of them.
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
    exist = all(is_sealed(cache_place(caches_of(config), w.identity.id)) for w in (train, test))
    if ranks.any(not exist):
        check_teacher(config, dataset, teacher, runtime, ranks=ranks)
    cached = _cache(job, train, mine=mine)
    tested = _cache(job, test, mine=None if mine is None else lambda n: mine(first_of_test + n))
    if cached is not None:
        existed = " exists, nothing to do" if exist else ""
        logger.info("%s%s: %s", cached.path, existed, describe(cached, tested))
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
        """Number of shards of all views; a cache that was begun keeps its shard size."""
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
    """The shards of this process; None: all of them."""
    if shards is None and not ranks.are_many:
        return None
    wanted = range(sys.maxsize) if shards is None else shards
    return lambda number: number in wanted and number % ranks.world == ranks.rank


def _cache(job: _Job, wanted: _Wanted, *, mine: OwnShard | None) -> TeacherCache | None:
    """The cache of one beton, if it is complete once this process has computed its shards."""
    place, ranks = cache_place(caches_of(job.config), wanted.identity.id), job.ranks
    if ranks.any(is_sealed(place)):
        cache = TeacherCache.open(place)
        _require_id(cache, wanted.identity)
        _require_same_code(job, wanted, place)
        logger.debug("%s exists: %s", cache.path, _details(cache))
        return cache
    require_conditional_create(caches_of(job.config))
    if place.size(MANIFEST) is not None:
        _require_same_code(job, wanted, place)
    fetched = _fetched(job, wanted, place) if ranks.is_first else None
    if ranks.any(fetched is not None):
        return fetched or TeacherCache.open(place)
    left = _computed(job, wanted, mine=mine, place=place)
    ranks.wait()  # the last one to finish has sealed it
    if left and not is_sealed(place):
        logger.info(
            "%s is not complete: other workers have %s left", place.url, counted(left, "shard")
        )
        return None
    cache = TeacherCache.open(place)
    logger.debug("%s: %s", cache.path, _details(cache))
    return cache


def _computed(job: _Job, wanted: _Wanted, *, mine: OwnShard | None, place: ObjectStore) -> int:
    """Compute the shards of this process; return the number of shards that are still missing."""
    if job.runtime.device.type == "cpu":
        reuse_freed_memory()
    batch_size = _batch_size(job, wanted)
    planned = TeacherPass(
        teacher=job.teacher,
        loader=_loader(job, wanted, batch_size),
        beton=wanted.beton,
        views=wanted.views,
        runtime=job.runtime,
        held_out=_held_out(job.dataset, wanted.beton),
        unfinished=_unfinished(job, wanted, batch_size),
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


def _batch_size(job: _Job, wanted: _Wanted) -> int:
    """The configured number of images of a forward pass, or one that suits the network."""
    size = seen_size(wanted.views, job.dataset)
    chosen = job.config.cache_teacher.batch_size
    return chosen or fitting_batch(job.teacher.model, size, job.runtime)


def _unfinished(job: _Job, wanted: _Wanted, batch_size: int) -> UnfinishedRows:
    """The local place for the rows of unfinished shards, next to a cache in the workspace."""
    cache_id = wanted.identity.id
    return UnfinishedRows(
        folder=job.config.caches_folder / (short(cache_id) + UNFINISHED),
        made_by={
            "cache": cache_id,
            "batch_size": batch_size,
            "device": job.runtime.description,
            **versions(),
        },
    )


def _loader(job: _Job, wanted: _Wanted, batch_size: int) -> BatchLoader:
    settings = job.config.cache_teacher
    return BatchLoader(
        wanted.beton,
        batch_size=batch_size,
        view_spec=wanted.views,
        workers=job.runtime.loader_workers(settings.workers),
        device=job.runtime.device,
    )


def _held_out(dataset: Dataset, beton: Beton) -> NDArray[np.int64]:
    return dataset.held_out if beton is dataset.train else np.zeros(0, dtype=np.int64)


def _require_same_code(job: _Job, wanted: _Wanted, place: ObjectStore) -> None:
    """Reject a cache of a network from elsewhere whose code has changed; the id does not hold it.

    Raises:
        ArtefactMismatch: if the outputs are not those that are stored.
    """
    if ":" in job.teacher.model.arch and job.ranks.is_first:
        require_same_network(place, job.teacher, wanted.beton, job.runtime)


def _fetched(job: _Job, wanted: _Wanted, place: ObjectStore) -> TeacherCache | None:
    """Fetch the same cache from the team's place, if it is there."""
    config, identity = job.config, wanted.identity
    if not config.share:
        return None
    shared = cache_place(open_objects(config.share), identity.id)
    if not is_sealed(shared):
        logger.info(
            "%s has no cache %s (precision %s), so the teacher runs here",
            config.share,
            short(identity.id),
            identity.precision,
        )
        return None
    if place.size(MANIFEST) is not None:
        logger.warning("%s was begun here, so it is completed here and not fetched", place.url)
        return None
    cache = TeacherCache.open(shared)
    _require_id(cache, identity)
    _require_same_code(job, wanted, shared)
    copy = copy_cache(cache, place)
    logger.info("%s fetched from %s", copy.path, shared.url)
    return copy


def _require_id(cache: TeacherCache, identity: CacheIdentity) -> None:
    """Compare whole ids: a path has only the start of one."""
    if cache.id != identity.id:
        raise ArtefactMismatch(
            f"{cache.path} is another teacher cache: id {cache.id} (expected {identity.id}). "
            "Set `caches` to another folder or bucket."
        )


def _accuracy(cache: TeacherCache) -> float:
    return 1.0 - cache.summary.num_wrong / cache.shape.num_samples


def describe(cache: TeacherCache, test: TeacherCache | None) -> str:
    """Describe the caches of a data set in one line."""
    summary, shape = cache.summary, cache.shape
    tested = "" if test is None else f"{percent(_accuracy(test))} on test images, "
    held_out = "".join(f"{percent(a)} held out, " for a in summary.accuracy_held_out[:1])
    return (
        f"{counted(shape.num_samples, 'training image')} in {counted(shape.num_views, 'view')}, "
        f"{summary.teacher}, accuracy {tested}{held_out}"
        f"{percent(summary.accuracy_training[0])} on training samples, {duration(summary.seconds)}"
    )


def _details(cache: TeacherCache) -> str:
    per_view = "/".join(f"{100 * a:.1f}" for a in cache.summary.accuracy_training)
    agree = "/".join(f"{100 * a:.1f}" for a in cache.summary.agreement[1:])
    return (
        f"id {cache.id}, accuracy per view {per_view} %"
        + (f", agreement with the clean view {agree} %" if agree else "")
        + f", {cache.num_bytes / 1e6:,.1f} MB"
    )
