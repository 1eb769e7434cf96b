"""Likely label errors of a cache's rows, by heads that have not seen the row that they judge."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.influence.cross_fit import cross_fit
from pipeline.influence.scoring_inputs import ScoredRows
from pipeline.methods.head.data import read_rows, runs
from pipeline.methods.label_issues import confident_thresholds, label_issues

_ROWS: Final = 16_384


def issue_columns(rows: ScoredRows, *, l2: float) -> dict[str, NDArray[np.generic]]:
    """Confident learning on cross-fitted probabilities: columns of `artefacts.scores`, (N,)."""
    folds, ranks = rows.folds, rows.ranks
    assert folds is not None, "there are some where issues are asked for"
    heads = cross_fit(
        rows.clean,
        rows.labels,
        folds=folds,
        l2=l2,
        start=rows.start,
        ranks=ranks,
    )

    def probs_of(part: slice) -> Tensor:
        return heads.logits_of(read_rows(rows.clean, part)[0], folds[part]).softmax(dim=1)

    # Twice, because the probabilities of all rows may be more than fits into memory.
    parts = [(part, rows.labels[part]) for part in runs(ranks.part(len(rows.labels)), size=_ROWS)]
    probs = [probs_of(part).gather(1, labels[:, None]).squeeze(1) for part, labels in parts]
    own = ranks.gathered(torch.cat([torch.zeros(0), *probs]))
    usual = confident_thresholds(own, rows.labels, num_classes=len(rows.start))
    found = [label_issues(probs_of(part), labels, thresholds=usual) for part, labels in parts]
    issues = torch.cat([torch.zeros(0, dtype=torch.bool), *found]).byte()
    return {
        "label_issue": ranks.gathered(issues).bool().numpy(),
        "p_refit": own.numpy(),
    }
