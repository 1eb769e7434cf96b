"""What a teacher cache says of itself: identity, shape and summary (see `teacher_cache`)."""

from typing import Final, Literal

from pipeline.artefacts.records import Record
from pipeline.provenance import identity

FORMAT_VERSION: Final = 1
MADE_BY = "heartcut cache-teacher"


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
    views: dict[str, int | bool]
    precision: Literal["bf16", "fp32"]
    features: bool

    @property
    def id(self) -> str:
        """Hash of all of it, 64 hex digits."""
        return identity("teacher_cache", [FORMAT_VERSION, self.model_dump(mode="json")])


class CacheShape(Record):
    """Sizes of the arrays."""

    num_views: int
    """Views stored, the clean one included: V + 1."""
    num_samples: int
    num_classes: int
    num_features: int


class CacheManifest(Record):
    """manifest.json: never changes."""

    format: Literal["heartcut.teacher_cache"] = "heartcut.teacher_cache"
    version: Literal[1] = FORMAT_VERSION
    id: str
    identity: CacheIdentity
    shape: CacheShape


class Fidelity(Record):
    """What float16 storage costs: KL divergence from the float32 logits, on a sample of rows."""

    temperature: float
    mean_kl: float
    max_kl: float


class CacheSummary(Record):
    """What the teacher is like; told by the stage, not part of the id."""

    accuracy_training: list[float]
    """Per view, on the rows that are trained on (T); on all rows where nothing is held out."""
    accuracy_held_out: list[float]
    """Per view, on the held-out rows (V); empty where nothing is held out."""
    num_wrong: int
    """Rows that the teacher gets wrong in the clean view."""
    agreement: list[float]
    """Share of rows in which view v has the clean view's class."""
    fidelity: list[Fidelity]
    head_error: float
    """max |logit - (head of the stored features)|."""
    target_in_sample: bool
    """The teacher's own training saw the held-out images."""
    teacher: str
    """What a person calls the teacher."""
    seconds: float
    device: str
    versions: dict[str, str]
