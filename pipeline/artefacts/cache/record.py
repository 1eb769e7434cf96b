"""What a teacher cache says of itself: identity, shape, layout, summary (see `teacher_cache`)."""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from pipeline.artefacts.records import Record
from pipeline.artefacts.zarr_arrays import Codec
from pipeline.provenance import identity

FORMAT_VERSION: Final = 2
MADE_BY = "heartcut cache-teacher"

MAX_SHARD_BYTES = 1 << 30
"""No stored object of a cache is larger, decoded: a manifest that asks for more is refused."""

Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 31)]


class CacheIdentity(Record):
    """Everything that the cached numbers depend on."""

    weights: str
    """Digest of the teacher's weights."""
    arch: str
    fingerprint: str
    """Of the images and labels."""
    pixel_digest: str
    """Of the decoded pixels: another decoder shows the teacher other images."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: dict[str, int | bool | float | str]
    precision: Literal["bf16", "fp32"]
    features: bool
    top_k: Annotated[int, Field(ge=0, le=4096)] = 0
    """Logits kept of each row; 0: all of them."""
    temperatures: tuple[float, ...] = ()
    """Temperatures at which the log-sum-exp is kept beside the top k."""

    @property
    def id(self) -> str:
        """Hash of all of it, 64 hex digits."""
        return identity("teacher_cache", [FORMAT_VERSION, self.model_dump(mode="json")])


class CacheShape(Record):
    """Sizes of the arrays."""

    num_views: Annotated[int, Field(ge=1, le=1 << 17)]
    """Views stored, the clean one included: V + 1."""
    num_samples: Count
    num_classes: Annotated[int, Field(ge=1, le=1 << 20)]
    num_features: Annotated[int, Field(ge=1, le=1 << 20)]


class CacheLayout(Record):
    """How the numbers are cut into objects: no part of the id, but of every byte."""

    shard_rows: Annotated[int, Field(ge=1, le=1 << 20)]
    """Rows of a shard, the commit unit: what one kill may cost in teacher forward passes."""
    codec: Codec = "zstd"
    """Lossless compression; "none" is faster to write and read, and a tenth larger."""


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
    """What storage costs: KL divergence of what is stored from the float32 logits, on a sample."""

    temperature: float
    mean_kl: float
    max_kl: float


class CacheSummary(Record):
    """What the teacher is like; told when the cache is sealed, not part of the id."""

    accuracy_training: list[float]
    """Per view, on the rows that are trained on (T); on all rows where nothing is held out. Of the
    stored logits; a tie for first place counts as right, here and in `select`."""
    accuracy_held_out: list[float]
    """Per view, on the held-out rows (V); empty where nothing is held out."""
    num_wrong: int
    """Rows that the teacher gets wrong in the clean view."""
    agreement: list[float]
    """Share of rows in which view v has the clean view's class."""
    fidelity: list[Fidelity]
    head_error: float
    """max |logit - (head of the stored features)|, on a sample."""
    target_in_sample: bool
    """The teacher's own training saw the held-out images."""
    teacher: str
    """What a person calls the teacher."""
    seconds: float
    """Of the teacher's work, summed over all that shared it."""
    devices: list[str]
    versions: dict[str, str]
