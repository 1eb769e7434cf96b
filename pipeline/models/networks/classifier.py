"""Interface of the networks that heartcut trains and distils: a linear head on features."""

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
        """The linear classifier, under any name in the network: weight (C, D), bias (C,)."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (B, D), the input of the head, of images (B, 3, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits
