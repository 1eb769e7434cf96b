"""Students to compare: trained from a cache, from memory, or with a teacher in the loop."""

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch
from _common import MEAN, STD, device_is_done
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.artefacts.dataset import Beton
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch, Supervision
from pipeline.data.views import ViewSpec
from pipeline.models.networks.classifier import Classifier
from pipeline.models.zoo import build
from pipeline.runtime.device import Runtime, num_cores
from pipeline.teacher.frozen import Teacher
from pipeline.teacher.online import OnlineTeacher
from pipeline.training.learner import EpochSize, Learner, StepRules, Totals, outputs_of
from pipeline.training.optimisation import (
    OptimiserSettings,
    ScheduleSettings,
    make_optimizer,
    make_schedule,
)
from pipeline.training.student_loss import DistillationLoss, DistillationSettings, Weights

TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # as in the usual CIFAR-100 recipes
SETTINGS = OptimiserSettings(kind="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
RATES = ScheduleSettings(
    kind="constant", epochs=1, steps_per_epoch=1, warmup=0.3, milestones=(), gamma=0.1
)


class Student:
    """A network with its own optimiser; all contestants use the same settings."""

    def __init__(
        self, arch: str, runtime: Runtime, *, num_classes: int, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.runtime = runtime
        self.model = build(arch, num_classes=num_classes).to(runtime.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = DistillationLoss(
            DistillationSettings(
                weights=Weights(ce=CE_WEIGHT, kd=KD_WEIGHT), temperature=TEMPERATURE
            )
        )
        self.normalise = Normaliser(mean=MEAN, std=STD, device=runtime.device)
        self.optimizer = make_optimizer([self.model], SETTINGS)
        self.schedule = make_schedule(self.optimizer, RATES)
        self.learner = Learner(
            self.model,
            self.loss,
            schedule=self.schedule,
            normalise=self.normalise,
            runtime=runtime,
            rules=StepRules(compile=compiled),
        )
        self._outputs = torch.compile(outputs_of) if compiled else outputs_of

    def train(self, batches: Iterator[Batch], *, size: EpochSize) -> None:
        """Train an epoch like train-student."""
        self.learner.epoch((batch for batch in batches), Totals(self.runtime.device), size=size)
        device_is_done()

    def train_bare(self, batches: Iterable[tuple[Tensor, Batch]]) -> None:
        """The limit: the same step on normalised batches in memory."""
        self.model.train()
        for images, batch in batches:
            with self.runtime.autocast():
                outputs = self._outputs(self.model, images)
            loss = self.loss(outputs, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        device_is_done()


class FieldStudent:
    """The loop of common repositories: float32, NCHW, and the teacher runs on every batch."""

    def __init__(self, teacher: str, student: str, device: torch.device, *, num_classes: int):
        torch.manual_seed(0)
        self._device = device
        self._model = build(student, num_classes=num_classes).to(device)
        self._teacher = build(teacher, num_classes=num_classes).to(device).eval()
        self._teacher.requires_grad_(False)
        self._optimizer = make_optimizer([self._model], SETTINGS)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Train with the loss weights of `Student`; metrics are read after every step."""
        self._model.train()
        for images, labels in batches:
            images, labels = images.to(self._device), labels.to(self._device)
            logits = self._model(images)
            with torch.no_grad():
                of_teacher = self._teacher(images)
            loss = CE_WEIGHT * F.cross_entropy(logits, labels)
            divergence = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(of_teacher / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = loss + KD_WEIGHT * TEMPERATURE**2 * divergence
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            loss.item(), (logits.argmax(dim=1) == labels).sum().item()
        device_is_done()


def resident(batches: Iterable[Batch], normalise: Normaliser) -> list[tuple[Tensor, Batch]]:
    """Copies of the batches on the device, normalised and with soft labels."""
    device = normalise.device
    return [
        (
            normalise(batch.images),
            Batch(
                images=batch.images[:0],
                labels=batch.labels.clone().to(device),
                indices=batch.indices.clone(),
                soft_labels=_kept(batch.soft_labels, device),
                selected=_kept(batch.selected, device),
            ),
        )
        for batch in batches
    ]


def _kept(rows: Tensor | None, device: torch.device) -> Tensor | None:
    return None if rows is None else rows.clone().to(device)


def supervision_of(beton: Beton, views: ViewSpec, *, num_classes: int) -> Supervision:
    """Soft labels of every view, nine samples in ten distilled."""
    generator = np.random.default_rng(1)
    drawn = generator.standard_gamma(0.3, (beton.num_samples, num_classes)) + 1e-6
    probs = (drawn / drawn.sum(axis=1, keepdims=True)).astype(np.float16)
    return Supervision(
        soft_labels=[probs] * views.count,
        selected=generator.random(beton.num_samples) < 0.9,
        labels=beton.samples.labels,
        by_view=True,
        num_classes=num_classes,
    )


def fresh_teacher(arch: str, runtime: Runtime, *, num_classes: int) -> Teacher:
    """A frozen network with fresh weights: its outputs do not change its cost."""
    torch.manual_seed(1)
    model: Classifier = build(arch, num_classes=num_classes).eval().requires_grad_(False)
    return Teacher(
        model=model.to(runtime.device).to(memory_format=torch.channels_last),
        digest="0" * 64,
        mean=MEAN,
        std=STD,
        target_in_sample=False,
        description=arch,
    )


def online_teacher(arch: str, runtime: Runtime, *, num_classes: int) -> OnlineTeacher:
    """The teacher in the loop of `train-student --online`."""
    return OnlineTeacher(
        teacher=fresh_teacher(arch, runtime, num_classes=num_classes),
        runtime=runtime,
        revision="none",
        eta=0.8,
        revise_at=TEMPERATURE,
        standardise=False,
    )


def endless(loader: BatchLoader, *, batch_size: int) -> Iterator[Batch]:
    """Batches of one epoch after the other, without incomplete ones."""
    for epoch in count():
        yield from (batch for batch in loader.epoch(epoch) if len(batch) == batch_size)


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR stores and transforms them."""

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
    """torch's DataLoader over a beton's images, with one worker for each core."""
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
