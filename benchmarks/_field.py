"""Loading images as the field does: torch's DataLoader over torchvision's transforms on PIL."""

import numpy as np
import torch
from _common import MEAN, STD
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader
from pipeline.runtime.device import num_cores


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR holds and transforms them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def field_loader(
    beton: Beton, *, batch_size: int, num_images: int | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of a beton's images as the field loads them, with one worker for each core."""
    return DataLoader(
        InMemory(_pixels(beton)[:num_images], beton.samples.labels[:num_images]),
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_cores(),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        drop_last=True,
        multiprocessing_context="forkserver",  # a fork would copy the threads' locks of this one
    )


def _pixels(beton: Beton) -> np.ndarray:
    loader = BatchLoader(beton, batch_size=500, workers=1)
    return np.concatenate(
        [batch.images.permute(0, 2, 3, 1).numpy().copy() for batch in loader.view(0)]
    )
