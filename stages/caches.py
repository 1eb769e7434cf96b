"""The caches of a configuration: their places, their layout, and opening them."""

from dataclasses import dataclass
from functools import cached_property
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
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.root import Config
from stages.config.select import INFLUENCE_STRATEGIES
from stages.identities import Identities, cache_request


def caches_of(config: Config) -> ObjectStore:
    """The folder or bucket in which this configuration writes caches."""
    return open_objects(config.caches or config.caches_folder)


def cache_place(root: ObjectStore, cache_id: str) -> ObjectStore:
    """The place of a cache below ``root``: its name is the start of its id."""
    return root.child(short(cache_id))


def is_sealed(place: ObjectStore) -> bool:
    """True if there is a complete cache."""
    return place.size(SEAL) is not None


def begun_cache(
    config: Config, dataset: Dataset, *, split: Literal["train", "eval"]
) -> ObjectStore | None:
    """The place of the cache that `cache-teacher` began for this configuration; None: none."""
    request = cache_request(config, dataset)
    cache_id = recall(config.caches_folder, request=request, split=split)
    if cache_id is None:
        return None
    place = cache_place(caches_of(config), cache_id)
    return place if place.size(MANIFEST) is not None or is_sealed(place) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Caches:
    """The caches that a configuration names, each opened once, at its first use.

    A command makes one of these and passes it on: opening reads the seal and lists a bucket.
    """

    config: Config
    dataset: Dataset

    @cached_property
    def training(self) -> TeacherCache:
        """The training cache: `select.cache`, or the one that `cache-teacher` made.

        Raises:
            ArtefactNotFound: if there is none.
            NotSealed: if it is not complete.
            Damaged: if it differs from what was written.
        """
        if self.config.select.cache is not None:
            return TeacherCache.open(self.config.select.cache)
        if self.made is not None:
            return self.made
        place = begun_cache(self.config, self.dataset, split="train")
        if place is None:
            precision = resolve_runtime(self.config.cache_teacher.precision).precision
            raise ArtefactNotFound(
                f"{self.config.caches or self.config.caches_folder} has no teacher cache for these "
                f"settings and precision {precision}. Run `heartcut cache-teacher`, or name a "
                "cache with `select.cache`."
            )
        return TeacherCache.open(place)

    @cached_property
    def made(self) -> TeacherCache | None:
        """The complete training cache that `cache-teacher` made for this configuration, if any."""
        return self._made("train")

    @cached_property
    def test(self) -> TeacherCache | None:
        """The complete cache of the test images that `cache-teacher` made, if any."""
        return self._made("eval")

    @cached_property
    def external(self) -> TeacherCache | None:
        """The cache of the influence target (`select.influence.external`), if it is read."""
        return self._read_by_scores(self.config.select.influence.external)

    @cached_property
    def proxy(self) -> TeacherCache | None:
        """The cache of the proxy's features (`select.influence.proxy`), if it is read."""
        return self._read_by_scores(self.config.select.influence.proxy)

    @cached_property
    def identities(self) -> Identities:
        """The identities of the artefacts that `select` makes from these caches."""
        return Identities.of(
            self.config.select,
            self.dataset,
            self.training,
            external=self.external,
            proxy=self.proxy,
        )

    def _made(self, split: Literal["train", "eval"]) -> TeacherCache | None:
        place = begun_cache(self.config, self.dataset, split=split)
        return TeacherCache.open(place) if place is not None and is_sealed(place) else None

    def _read_by_scores(self, place: str | None) -> TeacherCache | None:
        is_read = self.config.select.strategy in INFLUENCE_STRATEGIES
        return TeacherCache.open(place) if place is not None and is_read else None


def cache_layout(config: CacheTeacherConfig, *, num_classes: int, num_features: int) -> CacheLayout:
    """Layout of a new cache: rows per object, and compression.

    Raises:
        ConfigError: if `top_k` is larger than the number of classes.
    """
    if config.top_k > num_classes:
        raise ConfigError(
            f"cache_teacher.top_k is {config.top_k} and there are {num_classes} classes (expected "
            f"at most {num_classes}). Set `cache_teacher.top_k = 0` to keep all logits."
        )
    widest = max(config.top_k or num_classes, num_features if config.features else 0)
    rows = config.shard_rows or default_shard_rows(2 * widest)
    return CacheLayout(shard_rows=rows, codec=config.compression)
