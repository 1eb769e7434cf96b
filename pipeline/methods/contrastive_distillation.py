"""Contrastive representation distillation: recognise a sample's teacher features among others.

Tian et al. 2020, "Contrastive Representation Distillation", arXiv:1910.10699. The `state_dict`
holds everything that a resumed training needs, as tensors: weights, banks, normalisers, and
the number of batches seen, which seeds the draw of the next one.

Shapes: B batch (1 or more), N samples, K negatives, D_s and D_t dimensions of the features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.methods.feature_distillation import unit_rows


@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """Settings of the method."""

    dim: int
    """Dimensions of both embeddings; 128 in the paper."""
    negatives: int
    """K, limited to the samples outside the largest class; 16,384 in the paper."""
    temperature: float
    """Above 0; 0.07 in the published code, 0.1 in the paper for CIFAR-100."""
    momentum: float
    """Momentum of the banks, in [0, 1); 0.5 in the published code."""


class ContrastiveDistillation(nn.Module):
    """Noise-contrastive loss of two embeddings against banks of all samples' embeddings.

        L = L(g_s(f^s), teacher bank) + L(g_t(f^t), student bank)
        L(v, bank) = -(1/B) sum_i [ log h(v_i, bank_i) + sum_{k <= K} log(1 - h(v_i, bank_{n_k})) ]
        h(v, b) = e / (e + K/M),   e = exp(v . b / temperature) / Z
                                                         (Tian et al. 2020, arXiv:1910.10699)

    From the paper, where Z = 1 and M = N: h, linear embeddings of length 1, the sum over K.
    From its published code: negatives of other classes; both directions; Z, fixed by the first
    batch as M times the mean of exp(v . b / temperature), so that M cancels; banks that start
    uniform in +- sqrt(3 / dim) and then b <- unit(momentum b + (1 - momentum) v), after the
    loss. Ours: negatives are drawn with replacement (the code does so only where K exceeds
    what there is), and logarithms are of sigmoids, exact without the code's 1e-7.

    Memory: two banks of (N, dim), and (B, N) products at a time, rather than (B, K, dim).
    The student's optimiser must train the parameters; evaluation does not need the module.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalisers: Tensor
    batches_seen: Tensor
    class_order: Tensor
    class_starts: Tensor
    class_counts: Tensor

    def __init__(
        self,
        labels: Tensor,
        *,
        student_dim: int,
        teacher_dim: int,
        settings: ContrastSettings,
        seed: int,
    ) -> None:
        """Start the banks and embeddings at random.

        Args:
            labels: class ids, (N,) int64; a label below 0 marks a sample that is never distilled.
                It is never a negative, and its rows of the banks stay random.
            student_dim: D_s.
            teacher_dim: D_t.
            settings: settings of the method.
            seed: seed of banks, embeddings and draws.

        Raises:
            ValueError: if ``labels`` have fewer than two classes.
        """
        super().__init__()
        self.temperature, self.momentum, self.seed = settings.temperature, settings.momentum, seed
        self.negatives = min(settings.negatives, self._list_classes(labels))
        dim, bank = settings.dim, (len(labels), settings.dim)
        generator = torch.Generator().manual_seed(_mixed_seed(seed, 0))
        self.student_embedding = _linear(student_dim, dim, generator)
        self.teacher_embedding = _linear(teacher_dim, dim, generator)
        self.register_buffer("student_bank", _uniform(bank, 3 / dim, generator))
        self.register_buffer("teacher_bank", _uniform(bank, 3 / dim, generator))
        self.register_buffer("log_normalisers", torch.zeros(2))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, indices: Tensor, labels: Tensor
    ) -> Tensor:
        """Compute the loss of a batch, draw its negatives, then update its rows of the banks.

        Args:
            student_features: (B, D_s), any floating dtype.
            teacher_features: (B, D_t), any floating dtype.
            indices: sample indices, (B,) int64, distinct, in [0, N).
            labels: class ids, (B,) int64, among those of the samples.

        Returns:
            Scalar, dtype of the parameters (float32), also under autocast.
        """
        drawn = torch.cat([indices[:, None], self._draw_negatives(labels)], dim=1)
        with torch.autocast(student_features.device.type, enabled=False):
            student = _embedded(student_features, self.student_embedding)
            teacher = _embedded(teacher_features, self.teacher_embedding)
            loss = self._contrast(student, self.teacher_bank, drawn, direction=0)
            loss = loss + self._contrast(teacher, self.student_bank, drawn, direction=1)
        self._move(self.student_bank, indices, student.detach())
        self._move(self.teacher_bank, indices, teacher.detach())
        self.batches_seen += 1
        return loss

    def _list_classes(self, labels: Tensor) -> int:
        """Store the samples class by class; return the number outside the largest class."""
        counts = labels[labels >= 0].bincount()
        if (counts > 0).sum() < 2:
            raise ValueError(f"labels must have at least 2 classes, got {int((counts > 0).sum())}")
        order = labels.argsort(stable=True)[(labels < 0).sum() :]
        self.register_buffer("class_order", order, persistent=False)
        self.register_buffer("class_starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("class_counts", counts, persistent=False)
        return int(len(order) - counts.max())

    def _draw_negatives(self, labels: Tensor) -> Tensor:
        """Indices of samples of other classes, (B, K), each equally likely.

        Drawn as positions among the samples of other classes; positions from the row's class
        on are shifted behind that class.
        """
        seed = _mixed_seed(self.seed, 1 + int(self.batches_seen))
        generator = torch.Generator(labels.device).manual_seed(seed)
        starts, counts = self.class_starts[labels, None], self.class_counts[labels, None]
        shape = (len(labels), self.negatives)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=labels.device)
        positions = (uniform * (len(self.class_order) - counts)).long()
        return self.class_order[positions + counts * (positions >= starts)]

    def _contrast(self, anchors: Tensor, bank: Tensor, drawn: Tensor, *, direction: int) -> Tensor:
        """L(v, bank), with its gradient with respect to the anchors computed immediately.

        The bank has changed by the time of the backward pass, and a copy would cost N rows.
        """
        scores = (anchors.detach() @ bank.T).gather(1, drawn) / self.temperature
        sign = -torch.ones_like(scores)
        sign[:, 0] = 1.0  # the positive
        logits = sign * (scores - self._log_noise(scores, direction))
        slopes = -sign * (-logits).sigmoid() / self.temperature
        gradient = F.embedding_bag(drawn, bank, per_sample_weights=slopes, mode="sum")
        losses = -F.logsigmoid(logits).sum(1) + (gradient * (anchors - anchors.detach())).sum(1)
        return losses.mean()

    def _log_noise(self, scores: Tensor, direction: int) -> Tensor:
        """log(Z K / M) of a direction; the first batch fixes log(Z / M)."""
        if not self.batches_seen:
            log_mean = scores.flatten().logsumexp(0) - math.log(scores.numel())
            self.log_normalisers[direction] = log_mean
        return self.log_normalisers[direction] + math.log(self.negatives)

    def _move(self, bank: Tensor, indices: Tensor, embedded: Tensor) -> None:
        moved = self.momentum * bank[indices] + (1 - self.momentum) * embedded
        bank[indices] = unit_rows(moved)


def _embedded(features: Tensor, embedding: nn.Linear) -> Tensor:
    return unit_rows(embedding(features.to(embedding.weight.dtype)))


def _mixed_seed(seed: int, step: int) -> int:
    """A seed for one step, below 2^32, the part that a CPU generator reads."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**64
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return mixed >> 32


def _linear(dim_in: int, dim_out: int, generator: torch.Generator) -> nn.Linear:
    """`nn.Linear` with its default initialisation, drawn from ``generator``."""
    linear = nn.Linear(dim_in, dim_out, device="meta")
    linear.weight = nn.Parameter(_uniform((dim_out, dim_in), 1 / dim_in, generator))
    linear.bias = nn.Parameter(_uniform((dim_out,), 1 / dim_in, generator))
    return linear


def _uniform(shape: tuple[int, ...], squared_bound: float, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(squared_bound)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
