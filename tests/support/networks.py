"""Networks of one's own, as a user would write them, and small real teachers.

The teachers are trained in seconds on scikit-learn's digits in colour.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.normalisation import Normaliser
from pipeline.models.headed_network import HeadedNetwork
from pipeline.models.networks.classifier import Classifier
from pipeline.teacher.frozen import Teacher

CPU = torch.device("cpu")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
RAW = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
COLOURS = np.array(
    [
        *([230, 40, 40], [40, 40, 230], [240, 160, 30], [30, 160, 240], [60, 210, 60]),
        *([220, 60, 220], [235, 235, 235], [150, 90, 40], [40, 90, 150], [200, 200, 60]),
    ]
)
"""Colour of each digit; some change places where red and blue do."""


def with_dropout(*, num_classes: int) -> nn.Module:
    """A small network that draws random numbers while it is trained."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(8, num_classes),
    )


class Small(Classifier):
    """A network without batch statistics: a batch in parts is a batch."""

    arch = "small"

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, num_classes)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.norm(self.conv(images)).relu()
        return maps.mean(dim=(2, 3))


@cache
def coloured_digits() -> tuple[Tensor, Tensor]:
    """All digits, (1797, 3, 16, 16) uint8 in a random order, with a background; and the labels."""
    from sklearn.datasets import load_digits  # slow to load

    digits = load_digits()
    rng = np.random.default_rng(5)
    ink = np.kron(digits.images / 16.0, np.ones((2, 2)))[:, None]
    jitter = rng.normal(0, 18, (len(ink), 3))
    front = (COLOURS[digits.target] + jitter)[:, :, None, None]
    back = rng.integers(20, 110, (len(ink), 3))[:, :, None, None]
    pixels = ink * front + (1 - ink) * back + rng.normal(0, 6, (len(ink), 3, 16, 16))
    order = rng.permutation(len(ink))
    images = pixels.round().clip(0, 255).astype(np.uint8)[order]
    return torch.from_numpy(images), torch.from_numpy(digits.target[order].astype(np.int64))


def layers(num_classes: int) -> nn.Sequential:
    """A fresh small convolutional network, as a user would write it."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )


def network(num_classes: int = 10) -> HeadedNetwork:
    """The network as a classifier."""
    return HeadedNetwork(layers(num_classes), head="8", arch="tests.support.networks:layers")


def trained(
    images: Tensor,
    labels: Tensor,
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]],
    *,
    epochs: int = 5,
    is_bgr: bool = False,
    num_classes: int = 10,
) -> Teacher:
    """A teacher trained on these images with this normalisation."""
    torch.manual_seed(1)
    mean, std = normalisation
    model = network(num_classes)
    normalise = Normaliser(mean=mean, std=std, device=CPU, is_bgr=is_bgr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            if len(rows) > 1:
                optimizer.zero_grad()
                F.cross_entropy(model(normalise(images[rows])), labels[rows]).backward()
                optimizer.step()
    return Teacher(
        model=model.eval().requires_grad_(False),
        digest="",
        mean=mean,
        std=std,
        target_in_sample=True,
        description="small network",
        is_bgr=is_bgr,
    )


def with_rows(teacher: Teacher, rows: list[int]) -> Teacher:
    """The teacher with its classes in another order: row i of its head becomes row rows[i]."""
    model = network(len(rows))
    state = dict(teacher.model.state_dict())
    for name in ("8.weight", "8.bias"):
        moved = state[name].clone()
        moved[rows] = state[name]
        state[name] = moved
    model.load_state_dict(state)
    return replace(teacher, model=model.eval().requires_grad_(False))
