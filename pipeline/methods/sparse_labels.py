"""Soft labels of many classes, packed: a few listed classes and the mass of all others.

A packed row is 2 K + 3 numbers of 16 bits, so that it is one row of a flat uint16 table:

    class ids       K + 1    the top-k and the label; a label in the top-k is repeated at the end
    probabilities   K + 1    float16 bits; 0 for a repeated label
    rest            1        float16 bits: the mass of all other classes, divided equally

Shapes: B batch, C classes, K kept classes, W packed width.
"""

import torch
from torch import Tensor

MOST_CLASSES = 1 << 16
"""Limit on classes, because a class id is stored in 16 bits."""


def packed_width(top_k: int) -> int:
    """W: numbers of 16 bits in a packed row."""
    return 2 * (top_k + 1) + 1


def pack(dense_probs: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Pack soft labels into rows of 16-bit numbers.

    Args:
        dense_probs: (B, C), rows sum to 1; classes that are not listed have equal probabilities.
        classes: the top-k, distinct within a row, (B, K) int64 in [0, C).
        labels: ground-truth class ids, (B,) int64 in [0, C).

    Returns:
        (B, W) uint16.

    Raises:
        ValueError: if there are more classes than 16-bit ids, or if the probabilities of classes
            that are not listed differ.
    """
    num_classes = dense_probs.shape[1]
    if num_classes > MOST_CLASSES:
        raise ValueError(
            f"num_classes must be at most {MOST_CLASSES:,}, got {num_classes:,}: a packed row "
            "stores class ids in 16 bits"
        )
    listed = torch.cat([classes, labels[:, None]], dim=1)
    others = dense_probs.scatter(1, listed, 0.0)
    rest = others.sum(dim=1, keepdim=True)
    _require_even(others, rest, num_others=_num_others(listed, num_classes))
    probs = dense_probs.gather(1, listed)
    probs[:, -1].masked_fill_(_is_repeated(listed), 0.0)
    bits = torch.cat([probs, rest], dim=1).half().view(torch.int16)
    # torch supports little beyond views and copies of uint16; int16 has the same bits
    return torch.cat([listed.to(torch.int16), bits], dim=1).view(torch.uint16)


def unpack(packed: Tensor, num_classes: int) -> Tensor:
    """Unpack rows to probabilities.

    Args:
        packed: (B, W) uint16, of `pack`.
        num_classes: C, number of classes before packing.

    Returns:
        (B, C) float32 on the device of ``packed``; rows sum to 1, because they are normalised after
        the float16 rounding.

    Raises:
        ValueError: if `pack` cannot give rows of this width.
    """
    width = packed.shape[1]
    if width < packed_width(1) or width % 2 == 0:
        raise ValueError(f"packed rows have 5, 7, 9, ... numbers (2 K + 3), got {width}")
    num_listed = (width - 1) // 2
    bits = packed.view(torch.int16)
    listed = bits[:, :num_listed].long() & 0xFFFF
    values = bits[:, num_listed:].contiguous().view(torch.float16).float()
    share = values[:, -1:] / _num_others(listed, num_classes).clamp(min=1)[:, None]
    dense = share.repeat(1, num_classes).scatter_(1, listed, 0.0)
    dense.scatter_add_(1, listed, values[:, :-1])  # a repeated label adds 0
    return dense / dense.sum(dim=1, keepdim=True)


def _is_repeated(listed: Tensor) -> Tensor:
    """True if the label, listed last, is also among the top-k, (B,) bool."""
    return (listed[:, :-1] == listed[:, -1:]).any(dim=1)


def _num_others(listed: Tensor, num_classes: int) -> Tensor:
    """Classes that are not listed, (B,) int64."""
    return num_classes - listed.shape[1] + _is_repeated(listed).long()


def _require_even(others: Tensor, rest: Tensor, *, num_others: Tensor) -> None:
    """Reject rows whose other classes have unequal probabilities."""
    excess = others.amax(dim=1) * num_others - rest.squeeze(1)
    if (excess > 1e-3 * rest.squeeze(1)).any():
        row = int(excess.argmax())
        raise ValueError(
            f"classes that are not listed must have equal probabilities, got up to "
            f"{float(others[row].max()):.3g} in row {row} (expected "
            f"{float(rest[row] / num_others[row]):.3g}, its even share)"
        )
