"""Records of a teacher cache: identity, shape, layout and summary (see `teacher_cache`)."""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from pipeline.artefacts.records import Record
from pipeline.artefacts.zarr_arrays import Codec
from pipeline.provenance import identity

FORMAT_VERSION: Final = 2
MADE_BY = "heartcut cache-teacher"

MAX_SHARD_BYTES = 1 << 30
"""Limit on the decoded size of a stored object; a manifest that asks for more is rejected."""

Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 31)]


class CacheIdentity(Record):
    """Everything that the cached numbers depend on."""

    weights: str
    """Digest of the teacher's weights."""
    arch: str
    fingerprint: str
    """Fingerprint of the images and labels."""
    pixel_digest: str
    """Digest of the decoded pixels, because another decoder gives the teacher other pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: dict[str, int | bool | float | str]
    precision: Literal["bf16", "fp32"]
    features: bool
    top_k: Annotated[int, Field(ge=0, le=4096)] = 0
    """Logits kept of each row; 0: all of them."""
    temperatures: tuple[float, ...] = ()
    """Temperatures at which the log-sum-exp is kept in addition to the top k."""

    @property
    def id(self) -> str:
        """Hash of all fields, 64 hex digits."""
        return identity("teacher_cache", [FORMAT_VERSION, self.model_dump(mode="json")])


class CacheShape(Record):
    """Sizes of the arrays."""

    num_views: Annotated[int, Field(ge=1, le=1 << 17)]
    """Views stored, the clean one included: V + 1."""
    num_samples: Count
    num_classes: Annotated[int, Field(ge=1, le=1 << 20)]
    num_features: Annotated[int, Field(ge=1, le=1 << 20)]


class CacheLayout(Record):
    """Division of the numbers into objects: it changes the stored bytes, but not the id."""

    shard_rows: Annotated[int, Field(ge=1, le=1 << 20)]
    """Rows of a shard, the unit of work: a kill loses at most the shards in flight."""
    codec: Codec = "zstd"
    """Lossless compression; "none" is faster to write and read, and about 10 % larger."""


class CacheManifest(Record):
    """manifest.json: never changes."""

    format: Literal["heartcut.teacher_cache"] = "heartcut.teacher_cache"
    version: Literal[2] = FORMAT_VERSION
    id: str
    identity: CacheIdentity
    shape: CacheShape
    layout: CacheLayout

    @property
    def num_shards(self) -> int:
        """Shards of each view."""
        return -(-self.shape.num_samples // self.layout.shard_rows)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the one after its last."""
        start = shard * self.layout.shard_rows
        return start, min(start + self.layout.shard_rows, self.shape.num_samples)


class Fidelity(Record):
    """Loss by storage: KL divergence of stored from float32 logits, nats, on a few rows."""

    temperature: float
    mean_kl: float
    max_kl: float


class CacheSummary(Record):
    """Quality and cost of the teacher, recorded when the cache is sealed; not part of the id."""

    accuracy_training: list[float]
    """Accuracy of the stored logits per view, on the training rows (T); on all rows where nothing
    is held out. A tie for first place counts as right, here and in `select`."""
    accuracy_held_out: list[float]
    """Accuracy per view on the held-out rows (V); empty where nothing is held out."""
    num_wrong: int
    """Rows that the teacher gets wrong in the clean view."""
    agreement: list[float]
    """Share of rows in which view v has the clean view's class."""
    fidelity: list[Fidelity]
    head_error: float
    """max |logit - (head of the stored features)|, on a few rows."""
    target_in_sample: bool
    """The teacher's own training saw the held-out images."""
    teacher: str
    """Readable name of the teacher."""
    seconds: float
    """Seconds of teacher inference, summed over all workers."""
    devices: list[str]
    versions: dict[str, str]
