"""A student that ends in its teacher's own classifier.

Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier" (SimKD),
arXiv:2203.14001.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier
from pipeline.models.probing import name_of, without_module

SUFFIX = "+simkd"
REDUCTION = 2
"""The paper's r: the ratio of the teacher's features to the width of the projector."""


class ReusedHead(Classifier):
    """The trunk of a network, a trained projector, and a teacher's head with frozen weights.

        logits = W p(f) + b        f trunk features (D_s), p(f) projected features (D_t)

    In the paper the projector takes the last feature maps: convolutions of 1x1, 3x3 and 1x1 pixels
    through D_t / r channels, each with batch normalisation and ReLU, then the average over the
    pixels. Here it takes averaged features, because the cache holds the teacher's averaged: the
    same three layers without pixels, and no ReLU after the last, so that it can match averaged
    features with negative values.

    Args:
        trunk: the student; its modules are shared, its own head is left out.
        weight: weight of the teacher's head, (C, D_t).
        bias: bias of the teacher's head, (C,).
    """

    def __init__(self, trunk: Classifier, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        num_classes, dim = weight.shape
        self.arch = f"{trunk.arch}{SUFFIX}{dim}"
        self.trunk = without_module(trunk, name_of(trunk, trunk.head))
        self.projector = projector(trunk.head.in_features, dim)
        # Parameters, not buffers, as in any other head; they are never trained.
        self.teacher_head = nn.Linear(dim, num_classes).requires_grad_(False)
        self.teacher_head.weight.copy_(weight)
        self.teacher_head.bias.copy_(bias)

    @property
    def head(self) -> nn.Linear:
        """The teacher's linear classifier: weight (C, D_t), bias (C,)."""
        return self.teacher_head

    def features(self, images: Tensor) -> Tensor:
        """Projected features (B, D_t) of images (B, 3, H, W)."""
        assert isinstance(self.trunk, Classifier)
        projected: Tensor = self.projector(self.trunk.features(images))
        return projected


class VectorNorm(nn.BatchNorm1d):
    """Batch normalisation of vectors that uses the running statistics for a batch of one.

    A single vector has no variance, and the last batch of an epoch can have a single sample.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """Normalised vectors (B, D)."""
        if not self.training or self.num_rows(vectors) > 1:
            return super().forward(vectors)
        return F.batch_norm(
            vectors, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def num_rows(self, vectors: Tensor) -> int:
        """Rows of the whole batch; with several ranks, a subclass counts those of all ranks."""
        return len(vectors)


def projector(in_features: int, features: int) -> nn.Sequential:
    """Map from student features (B, D_s) to the teacher's (B, D_t)."""
    middle = max(1, features // REDUCTION)
    return nn.Sequential(
        nn.Linear(in_features, middle, bias=False),
        VectorNorm(middle),
        nn.ReLU(inplace=True),
        nn.Linear(middle, middle, bias=False),
        VectorNorm(middle),
        nn.ReLU(inplace=True),
        nn.Linear(middle, features, bias=False),
        VectorNorm(features),
    )
