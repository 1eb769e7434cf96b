"""Hypothesis strategies that several tests share."""

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def logit_batches(draw: st.DrawFn, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and labels (B,): mild to saturated, some with ties for first place."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch_size, num_classes = draw(st.integers(1, 12)), draw(st.integers(2, 12))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    logits = scale * torch.randn(batch_size, num_classes, generator=generator)
    if draw(st.booleans()):
        logits = logits.round()
    labels = torch.randint(num_classes, (batch_size,), generator=generator)
    return logits.to(dtype), labels


@st.composite
def teacher_batches(
    draw: st.DrawFn, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Teacher probabilities (B, C) and labels (B,)."""
    logits, labels = draw(logit_batches(dtype=dtype))
    return torch.softmax(logits, dim=1), labels
