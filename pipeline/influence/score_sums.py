"""Scores of rows that several targets have scored, averaged.

Shapes: N rows.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.methods.head.influence import RowScores


@dataclass(kw_only=True)
class ScoreSums:
    """A score of every row, averaged over the targets that it is held against."""

    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)

    def add(self, scores: RowScores | None, positions: Tensor, num_rows: int) -> None:
        if scores is None:
            return
        self.means.append(placed(scores.mean, positions, num_rows))
        self.stds.append(placed(scores.std, positions, num_rows))
        if scores.error is not None:
            self.errors.append(placed(scores.error, positions, num_rows))

    @property
    def mean(self) -> Tensor:
        return torch.stack(self.means).nanmean(dim=0)

    @property
    def std(self) -> Tensor:
        return torch.stack(self.stds).nanmean(dim=0)

    @property
    def error(self) -> Tensor:
        """Within one target, of its groups; over several, of the mean of independent targets."""
        if not self.errors:
            return torch.full_like(self.means[0], torch.nan)
        squares = torch.stack(self.errors).square()
        counts = (~squares.isnan()).sum(dim=0)
        return squares.nansum(dim=0).sqrt() / counts


def placed(values: Tensor, positions: Tensor, num_rows: int) -> Tensor:
    out = torch.full((num_rows,), torch.nan, dtype=torch.float64)
    out[positions] = values.cpu()
    return out
