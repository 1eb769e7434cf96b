"""Networks of one's own, as a user would write them."""

from torch import Tensor, nn

from pipeline.models.networks.classifier import Classifier


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
