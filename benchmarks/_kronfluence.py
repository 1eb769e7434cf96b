"""kronfluence's EK-FAC of the same head: labels sampled once, fp32, its own defaults.

kronfluence gets one `nn.Linear` with the fitted head, the cached features as its data set, and the
mean held-out loss as its only, aggregated query. Its scores are sums over rows, hence 1 / (N M).
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pipeline.methods.head.problem import HeadProblem

BATCH = 4096
DEFAULT_DAMPING = ScoreArguments().damping_factor


@dataclass(frozen=True, kw_only=True)
class HeadTask(Task):
    """The mixture loss of `HeadProblem` on rows (features, label, soft label, distilled)."""

    kd_weight: float
    temperature: float

    def compute_train_loss(self, batch, model: nn.Module, sample: bool = False) -> Tensor:
        features, labels, soft, distilled = batch
        logits = model(features)
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(torch.softmax(logits, dim=1), 1).squeeze(1)
            return F.cross_entropy(logits, drawn, reduction="sum")
        hard = F.cross_entropy(logits, labels, reduction="none")
        tempered = torch.log_softmax(logits / self.temperature, dim=1)
        kd = self.temperature**2 * F.kl_div(tempered, soft, reduction="none").sum(dim=1)
        return torch.lerp(hard, kd, self.kd_weight * distilled).sum()

    def compute_measurement(self, batch, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


@dataclass(frozen=True, kw_only=True, eq=False)
class KronfluenceFit:
    """kronfluence's factors, which precondition any query gradient, and its own scores."""

    class_basis: Tensor
    input_basis: Tensor
    eigenvalues: Tensor
    removal: Tensor
    """Its pairwise scores at its default damping, divided by N M: dloss_remove, (N,)."""

    def inverse(self, gradient: Tensor, *, damping: float) -> Tensor:
        """Precondition a query gradient, (C, D + 1)."""
        rotated = self.class_basis.T @ gradient @ self.input_basis
        return self.class_basis @ (rotated / (self.eigenvalues + damping)) @ self.input_basis.T


def kronfluence_fit(
    problem: HeadProblem, weight: Tensor, *, features: Tensor, labels: Tensor, seed: int = 0
) -> KronfluenceFit:
    """Fit kronfluence to the training samples, and score them against the held-out ones."""
    torch.manual_seed(seed)
    task = HeadTask(kd_weight=problem.kd_weight, temperature=problem.temperature)
    model = nn.Sequential(nn.Linear(weight.shape[1] - 1, weight.shape[0]))
    with torch.no_grad():
        model[0].weight.copy_(weight[:, :-1])
        model[0].bias.copy_(weight[:, -1])
    rows = TensorDataset(
        problem.features[0].float(),
        problem.labels,
        problem.soft_labels[0].float(),
        problem.distilled.float(),
    )
    query = TensorDataset(features.float(), labels)
    with tempfile.TemporaryDirectory() as folder, _quietly():
        analyzer = Analyzer(
            "head",
            prepare_model(model, task),
            task,
            cpu=True,
            disable_tqdm=True,
            log_level=logging.ERROR,
            output_dir=folder,
        )
        analyzer.fit_all_factors("ekfac", rows, per_device_batch_size=BATCH)
        analyzer.compute_pairwise_scores(
            "removal",
            "ekfac",
            query,
            rows,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(aggregate_query_gradients=True),
        )
        scores = analyzer.load_pairwise_scores("removal")["all_modules"].flatten()
        factors = {
            name: part["0"].double() for name, part in analyzer.load_all_factors("ekfac").items()
        }
    return KronfluenceFit(
        class_basis=factors["gradient_eigenvectors"],
        input_basis=factors["activation_eigenvectors"],
        eigenvalues=factors["lambda_matrix"] / factors["num_lambda_processed"],
        removal=scores.double() / (len(rows) * len(query)),
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Undo kronfluence's change of the root log level; ignore its warnings of deprecated calls."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        finally:
            root.setLevel(level)
