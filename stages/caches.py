"""The caches of a configuration: their places, their layout, and opening them."""

from typing import Literal

from pipeline.artefacts.cache.arrays import default_shard_rows
from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.cache.receipts import MANIFEST, SEAL
from pipeline.artefacts.cache.record import CacheLayout
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import ArtefactNotFound, ConfigError
from pipeline.provenance import short
from pipeline.runtime.device import resolve_runtime
from stages.config.root import CacheTeacherConfig, Config
from stages.identities import cache_request


def caches_of(config: Config) -> ObjectStore:
    """Where this configuration makes caches."""
    return open_objects(config.caches or config.caches_folder)


def cache_place(root: ObjectStore, cache_id: str) -> ObjectStore:
    """Where a cache lies below ``root``: its name is the start of its id."""
    return root.child(short(cache_id))


def is_sealed(place: ObjectStore) -> bool:
    """Whether a complete cache lies there."""
    return place.size(SEAL) is not None


def begun_cache(
    config: Config, dataset: Dataset, *, split: Literal["train", "eval"]
) -> ObjectStore | None:
    """Where the cache lies that `cache-teacher` began for this configuration, if it did."""
    request = cache_request(config, dataset)
    cache_id = recall(config.caches_folder, request=request, split=split)
    if cache_id is None:
        return None
    place = cache_place(caches_of(config), cache_id)
    return place if place.size(MANIFEST) is not None or is_sealed(place) else None


def made_cache(
    config: Config, dataset: Dataset, *, split: Literal["train", "eval"]
) -> TeacherCache | None:
    """The sealed cache that `cache-teacher` made of this configuration, if it did."""
    place = begun_cache(config, dataset, split=split)
    return TeacherCache.open(place) if place is not None and is_sealed(place) else None


def find_cache(config: Config, dataset: Dataset) -> TeacherCache:
    """The training cache that a configuration means.

    Raises:
        ArtefactNotFound: if `cache-teacher` has not made it.
        NotSealed: if it has not completed it.
        Damaged: if it is not what was written.
    """
    if config.select.cache is not None:
        return TeacherCache.open(config.select.cache)
    place = begun_cache(config, dataset, split="train")
    if place is None:
        precision = resolve_runtime(config.cache_teacher.precision).precision
        raise ArtefactNotFound(
            f"{config.caches or config.caches_folder} has no teacher cache for these settings and "
            f"precision {precision}. Run `heartcut cache-teacher` with the same configuration, or "
            "name a cache with `select.cache`."
        )
    return TeacherCache.open(place)


def cache_layout(config: CacheTeacherConfig, *, num_classes: int, num_features: int) -> CacheLayout:
    """How a new cache is cut into objects.

    Raises:
        ConfigError: if more logits are to be kept than there are.
    """
    if config.top_k > num_classes:
        raise ConfigError(
            f"cache_teacher.top_k is {config.top_k} and there are {num_classes} classes (expected "
            "at most as many). Set `cache_teacher.top_k = 0` to keep all logits."
        )
    widest = max(config.top_k or num_classes, num_features if config.features else 0)
    rows = config.shard_rows or default_shard_rows(2 * widest)
    return CacheLayout(shard_rows=rows, codec=config.compression)
