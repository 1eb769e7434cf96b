"""The kind of network that heartcut trains and distils: a linear head on features."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """A network that is a linear head on features, as head influence and distillation need.

    Shapes: B batch, D features, C classes.
    """

    arch: str
    """Name under which `pipeline.models.zoo.build` makes this network."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The linear classifier, whatever the network calls it: weight (C, D), bias (C,)."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """What the head sees of images (B, 3, H, W): features (B, D)."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits
