"""Evaluation of a network: one pass over batches in the clean view."""

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.methods.metrics import Evaluation, evaluate_logits
from pipeline.runtime.device import Runtime
from pipeline.runtime.ranks import ALONE, Ranks


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    normalise: Normaliser,
    runtime: Runtime,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run a network over all samples once; with several ranks, each has a contiguous part."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        with runtime.autocast():
            out = model(normalise(batch.images))
        logits.append(out.float().cpu())
        labels.append(batch.labels.clone().cpu())
    return evaluate_logits(ranks.gathered(torch.cat(logits)), ranks.gathered(torch.cat(labels)))
