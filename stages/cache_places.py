"""Where the caches of a configuration lie, and opening them."""

from typing import Literal

from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.cache.receipts import MANIFEST, SEAL
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import ArtefactNotFound
from pipeline.provenance import short
from pipeline.runtime.device import resolve_runtime
from stages.config.root import Config
from stages.requests import cache_request


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
