"""Where the caches of a configuration lie, and opening them."""

from typing import Literal

from pipeline.artefacts.cache_index import recall
from pipeline.artefacts.cache_receipts import SEAL
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects import ObjectStore, open_objects
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.errors import ArtefactNotFound
from pipeline.provenance import short
from stages.configs import Config
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


def made_cache(
    config: Config, dataset: Dataset, *, split: Literal["train", "eval"]
) -> TeacherCache | None:
    """The sealed cache that `cache-teacher` made of this configuration, if it did."""
    request = cache_request(config, dataset)
    cache_id = recall(config.caches_folder, request=request, split=split)
    if cache_id is None:
        return None
    place = cache_place(caches_of(config), cache_id)
    return TeacherCache.open(place) if is_sealed(place) else None


def find_cache(config: Config, dataset: Dataset) -> TeacherCache:
    """The training cache that a configuration means.

    Raises:
        ArtefactNotFound: if `cache-teacher` has not made it.
        ArtefactMismatch: if it is damaged.
    """
    if config.select.cache is not None:
        return TeacherCache.open(config.select.cache)
    cache = made_cache(config, dataset, split="train")
    if cache is None:
        raise ArtefactNotFound(
            f"{config.caches or config.caches_folder} has no complete teacher cache for these "
            "settings. Run `heartcut cache-teacher` with the same configuration, or name a cache "
            "with `select.cache`."
        )
    return cache
