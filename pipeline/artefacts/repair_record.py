"""What is said of a repaired teacher: a classifier that was refitted on the cached features."""

from typing import Literal

from pipeline.artefacts.records import Record


class RepairIdentity(Record):
    """Everything that the repaired logits depend on beside the cache and the images' labels."""

    kind: Literal["head"] = "head"
    folds: int
    """Every sample is predicted by a head that was fitted without its fold."""
    seed: int
    """Of the folds, and of the half of the held-out rows that decides on l2."""
    held_out: str
    """Hash of the held-out samples' keys: no head is fitted to them."""


class HeadQuality(Record):
    """How good the logits of the clean view are."""

    accuracy: float
    """Of the held-out rows that are reported on; so are the next two."""
    loss: float
    """Mean cross-entropy, nats."""
    calibration_error: float
    num_wrong: int
    """Training rows whose label is not at the top."""


class RepairReport(Record):
    """The teacher's own classifier and the repaired one."""

    before: HeadQuality
    after: HeadQuality
    num_held_out: tuple[int, int]
    """Held-out rows that decided on l2, and the others, which are reported on."""
    l2: float
    tried: list[tuple[float, float]]
    """Each l2 and the loss of the held-out rows that decided."""
    folds: int
    seed: int
    gradient_norm: float
    """Largest of all heads."""
    weights: str
    """Digest of the heads, (folds + 1, C, D + 1); the last is that of the held-out rows."""
