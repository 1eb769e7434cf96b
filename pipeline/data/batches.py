"""What a loader hands out."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A borrowed batch; B samples. Indices are on the host, all else where the loader puts it."""

    images: Tensor
    """(B, 3, H, W) uint8, channels_last in memory."""
    labels: Tensor
    """(B,) int64"""
    indices: Tensor
    """Sample indices, (B,) int64."""
    soft_labels: Tensor | None
    """Rows of the loader's tables as stored, where it was given any: (B, C) float16 probabilities,
    or packed rows, (B, W) uint16, for `sparse_labels.unpack`."""
    selected: Tensor | None
    """(B,) bool: distil this sample."""
    features: Tensor | None = None
    """The teacher's, (B, D) float16, where the loader was given any."""

    def __len__(self) -> int:
        return len(self.labels)
