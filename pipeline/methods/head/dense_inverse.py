"""The exact inverse of a head's Hessian, for heads that are small enough to write it out.

Adding the same row to every class changes no softmax, so H is inverted on the weights that are
centred over classes: with P = C (D + 1) and u = 1 / sqrt(C),

    H_0 = (1/NK) sum S_ik (x) h~_ik h~_ik^T,   H = H_0 + l2 diag(m)
    H^+ = (H + k u u^T (x) I)^-1 on centred weights, for any k > 0

    p_eff            = tr[H_0 H^+]
    self_influence_i = (1/N) <g_i, H^+ g_i>,    g_i = mean_k r_ik h~_ik^T
    leverage_i       = (1/N) mean_k tr[S_ik Q_ik],    Q_ik[c, d] = h~_ik^T H^+[c, d] h~_ik

Shapes: N samples, K views, D features, C classes, M rows of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pipeline.methods.head.problem import Linearisation
from pipeline.methods.head.rows import BentRows, LinearRows
from pipeline.methods.rank_sums import led, summed

MOST_WEIGHTS: Final = 4096
"""P above which the inverse takes more than 134 MB and tens of seconds."""
MOST_WORK: Final = 4e11
"""N K P^2 above which the inverse is not worth its time: about 20 s on two cores."""
_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseInverse:
    """The exact inverse Hessian of a linearisation."""

    linear: Linearisation
    inverse: Tensor
    """H^+, (C, D + 1, C, D + 1) float64, symmetric."""

    effective_parameters: float
    """p_eff = tr[H_0 H^+]: the parameters that the data, not l2, determine."""

    def self_influence(self) -> Tensor:
        """Predicted rise of each sample's own loss if it were left out, (N,) float64, >= 0."""
        return self._of_samples(self._squared_gradients)

    def leverage(self) -> Tensor:
        """Effective parameters that each sample determines, (N,) float64; their sum is p_eff."""
        return self._of_samples(self._traces)

    def _of_samples(self, score: Callable[[LinearRows], Tensor]) -> Tensor:
        problem = self.linear.problem
        found = [self.linear.weight.new_empty(0)]
        found += [score(chunk) for chunk in self.linear.chunks()]
        return problem.sharing.gathered(torch.cat(found)) / problem.num_samples

    def _squared_gradients(self, chunk: LinearRows) -> Tensor:
        """<g, H^+ g> of every sample of a chunk, (n,)."""
        views, width = self.linear.problem.num_views, self.linear.weight.numel()
        residuals = _by_view(chunk.residuals(), views)
        inputs = _by_view(chunk.rows.inputs, views)
        found = [inputs.new_empty(0, dtype=torch.float64)]
        for start in range(0, residuals.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            r, h = residuals[:, part].double(), inputs[:, part].double()
            gradients = torch.einsum("knc,knd->ncd", r, h).reshape(-1, width) / views
            moved = gradients @ self.inverse.view(width, width)
            found.append((gradients * moved).sum(dim=1))
        return torch.cat(found)

    def _traces(self, chunk: LinearRows) -> Tensor:
        """mean_k tr[S Q] of every sample of a chunk, (n,)."""
        inputs, found = chunk.rows.inputs, [self.linear.weight.new_empty(0)]
        pairs = list(chunk.curvatures())
        for start in range(0, len(inputs), _ROWS):
            part = slice(start, start + _ROWS)
            forms = self._forms(inputs[part].double())
            traces = forms.new_zeros(len(forms))
            for share, probs in pairs:
                p = probs[part].double()
                own = (forms.diagonal(dim1=1, dim2=2) * p).sum(dim=1)
                crossed = torch.einsum("nc,nck,nk->n", p, forms, p)
                traces += share[part].squeeze(1).double() * (own - crossed)
            found.append(traces)
        return torch.cat(found).view(self.linear.problem.num_views, -1).mean(dim=0)

    def _forms(self, inputs: Tensor) -> Tensor:
        """Q of some rows, (m, C, C)."""
        num_classes, width = self.linear.weight.shape
        rows = []
        for own in self.inverse:  # one class at a time bounds the memory: (D + 1, C, D + 1)
            moved = (inputs @ own.reshape(width, -1)).view(-1, num_classes, width)
            rows.append(torch.bmm(moved, inputs[:, :, None]).squeeze(2))
        return torch.stack(rows, dim=1)


def dense_inverse(linear: Linearisation) -> DenseInverse | None:
    """The exact inverse Hessian; None if it is too large to be worth its time and memory."""
    num_classes, num_inputs = linear.weight.shape
    size, num_rows = num_classes * num_inputs, linear.problem.num_rows
    if size > MOST_WEIGHTS or num_rows * size**2 > MOST_WORK:
        return None
    total = linear.weight.new_zeros(num_classes, num_inputs, num_classes, num_inputs)
    for chunk in linear.bends():
        _add(total, chunk)
    problem = linear.problem
    data = (summed(problem.sharing, total) / problem.curvature.num_rows).view(size, size)
    centre = torch.full((num_classes, num_classes), 1.0 / num_classes, dtype=torch.float64)
    shift = torch.kron(centre, torch.eye(num_inputs, dtype=torch.float64)).to(data)
    l2 = problem.l2 * problem.mask(linear.weight).expand_as(linear.weight).reshape(-1)
    scale = float(data.diagonal().mean()) + problem.l2
    inverse = torch.linalg.inv(data + torch.diag(l2) + scale * shift)
    # The added part inverts to u u^T (x) I / k up to l2, and centred vectors do not meet it.
    inverse = led(problem.sharing, _centred(inverse, num_classes))
    return DenseInverse(
        linear=linear,
        inverse=inverse.view(num_classes, num_inputs, num_classes, num_inputs),
        effective_parameters=float((data * inverse).sum()),
    )


def _add(total: Tensor, chunk: BentRows) -> None:
    """Add sum_i S_i (x) h~_i h~_i^T of a chunk to (C, D + 1, C, D + 1)."""
    inputs = chunk.inputs.double()
    for share, probs in chunk.curvatures():
        p, pull = probs.double(), (share * probs).double()
        for c in range(len(total)):
            for d in range(c, len(total)):
                weight = pull[:, c] * (float(c == d) - p[:, d])
                block = (inputs * weight[:, None]).T @ inputs
                total[c, :, d] += block
                if c != d:
                    total[d, :, c] += block.T


def _centred(matrix: Tensor, num_classes: int) -> Tensor:
    """Remove from rows and columns of (P, P) the part that is equal for all classes."""
    parts = matrix.view(num_classes, -1, len(matrix))
    half = (parts - parts.mean(dim=0)).reshape(matrix.shape).T.reshape(num_classes, -1, len(matrix))
    return (half - half.mean(dim=0)).reshape(matrix.shape)


def _by_view(rows: Tensor, views: int) -> Tensor:
    """(K n, X) as (K, n, X)."""
    return rows.view(views, -1, rows.shape[1])
