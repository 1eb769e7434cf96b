"""Diagnosis of a teacher on a few hundred images: is it no better than a guess, and why?

The teacher is compared with itself under the usual mistakes: classes in another order, channels in
another order, another normalisation, other images. An order of the classes costs nothing, because
the same logits serve; it is fitted on one half of the images and judged on the other. Every other
mistake costs a forward pass, so it is tried on a few images first, and only where the teacher is
wrong often enough for a mistake to matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.models.probing import UNFIT
from pipeline.runtime.device import Runtime
from pipeline.teacher.class_orders import Order, best_order, fitted_hits, hits_of
from pipeline.teacher.frozen import Teacher, teacher_outputs

GOOD: Final = 0.9
"""Accuracy from which only orders of the classes are tried, which cost nothing."""
FIRST_LOOK: Final = 32
FIRST_LOOK_OF_A_GUESS: Final = 48
"""Images on which every alternative is tried before the best go on."""
LEAST_ON_FIRST_LOOK: Final = 2
"""Images by which an alternative must be better on the first look to go on."""
NUM_FINALISTS: Final = 3
BATCH: Final = 64
CLEAR: Final = (4.0, 0.10)
HINT: Final = (3.5, 0.10)
"""Standard errors and accuracy by which an alternative must be better, to be clear or a hint."""
CLEAR_OF_A_GOOD_ONE: Final = 0.15
"""The accuracy for a teacher that is better than a guess: it may suit these images less."""
NEARLY_ALL: Final = (0.05, 0.8)
"""Accuracy, and part of the mistakes that it corrects, that are a hint as well."""
MOST: Final = 0.6
"""Part of the mistakes that a normalisation which may suit any teacher must correct for a hint."""
CLEAR_OF_IMAGES, HINT_OF_IMAGES = 0.25, 0.15
"""Accuracy by which other images must be better: smoother ones suit any teacher of noisy images."""
CONVINCING: Final = 0.4
"""Part of the way from a guess to 100 % that a clear alternative reaches."""
CONVINCING_IF_FITTED: Final = 0.6
"""The same for a fitted order together with another change, of which many are tried."""
ERRORS_OF_A_GUESS: Final = 2.0

Change: TypeAlias = Callable[[Tensor], Tensor]
"""Change of uint8 images (B, 3, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a diagnosis, in a random order in which the classes take turns."""

    pixels: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""

    batch_size: int = BATCH
    """Images of a forward pass, at most `BATCH`."""


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A mistake that a teacher's settings or images may have."""

    what: str
    """Noun phrase: "ImageNet's normalisation"."""
    fix: str
    """Instruction: "set ..."."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """The normalisation; None: the teacher's."""
    swaps_channels: bool = False
    change: Change | None = None
    batch_statistics: bool = False
    is_costly: bool = False
    """True if it is tried only for a teacher that is no better than a guess."""
    may_adapt: bool = False
    """True if it can make a right teacher better on images unlike those of its training."""

    @property
    def concerns_images(self) -> bool:
        """True if it changes the images or the network, which no setting of the teacher does."""
        return self.change is not None or self.batch_statistics

    def and_swapped(self, other: "Alternative") -> "Alternative":
        """This alternative together with the other order of channels."""
        return replace(
            self,
            what=f"{self.what} and {other.what}",
            fix=f"{self.fix} and {other.fix}",
            swaps_channels=True,
        )


@dataclass(frozen=True, kw_only=True)
class KnownOrder:
    """An order that the classes of a head often have."""

    what: str
    order: Order


@dataclass(frozen=True, kw_only=True)
class Better:
    """A change of the settings with which the teacher is right more often."""

    alternative: Alternative | None
    order: Order | None
    """Order of the head's classes; None: as it is."""
    order_name: str
    accuracy: float
    is_clear: bool

    @property
    def num_changes(self) -> int:
        return (self.alternative is not None) + (self.order is not None)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Accuracy of a teacher on a few images, compared with a guess and with alternatives."""

    num_images: int
    accuracy: float
    guess: float
    """Accuracy of the best constant answer."""
    better: Better | None
    is_storable: bool = True
    """False if a logit does not fit float16, which the pass into a cache reports."""

    @property
    def is_a_guess(self) -> bool:
        """True if the accuracy is within the errors of that of a guess."""
        return self.accuracy <= highest_guess(self.guess, self.num_images)


def best_guess(labels: NDArray[np.int64], *, num_classes: int) -> float:
    """Accuracy of the better of two guesses: any class, or always the most frequent one."""
    return max(1 / num_classes, float(np.bincount(labels).max() / len(labels)))


def highest_guess(guess: float, num_images: int) -> float:
    """Accuracy that a guess rarely exceeds on so many images."""
    return guess + ERRORS_OF_A_GUESS * sqrt(guess * (1 - guess) / max(num_images, 1))


def balanced_rows(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` rows in a fixed random order in which the classes take turns."""
    rows = np.random.default_rng(0).permutation(len(labels))
    shuffled = labels[rows]
    counts = np.bincount(shuffled)
    turn = np.empty(len(rows), dtype=np.int64)
    turn[np.argsort(shuffled, kind="stable")] = np.arange(len(rows)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    return rows[np.argsort(turn, kind="stable")][:count]


def diagnose(
    teacher: Teacher,
    images: Images,
    *,
    runtime: Runtime,
    alternatives: Sequence[Alternative],
    orders: Sequence[KnownOrder],
) -> Diagnosis:
    """Compare a teacher with a guess and with itself under the usual mistakes.

    Args:
        teacher: the teacher, in evaluation mode; it is not changed.
        images: of the data set, in the clean view.
        runtime: device and precision.
        alternatives: mistakes that need a forward pass each.
        orders: orders of the classes to name, in the order of preference.
    """
    case = _Case(teacher=teacher, images=images, runtime=runtime, orders=orders)
    now = case.logits(None)
    hits = hits_of(now, images.labels)
    guess = best_guess(images.labels.numpy(), num_classes=now.shape[1])
    accuracy = float(hits.mean())
    is_a_guess = accuracy <= highest_guess(guess, len(hits))
    case = replace(case, now=hits, guess=guess, is_a_guess=is_a_guess)
    found = case.better_orders(now, None)
    if accuracy < GOOD and alternatives:
        found = case.searched(found, alternatives)
    return Diagnosis(
        num_images=len(hits),
        accuracy=accuracy,
        guess=guess,
        better=_simplest(found),
        is_storable=bool((now.abs() <= torch.finfo(torch.float16).max).all()),
    )


def _pairs(alternatives: Sequence[Alternative]) -> list[Alternative]:
    """Every other normalisation with the other order of channels."""
    swapped = [one for one in alternatives if one.swaps_channels]
    return [one.and_swapped(swap) for swap in swapped for one in alternatives if one.mean]


def _simplest(found: Sequence[Better]) -> Better | None:
    """The best alternative; of those that are nearly as good, the first with the fewest changes."""
    if not found:
        return None
    best = max(one.accuracy for one in found)
    near = [one for one in found if one.accuracy >= best - 0.01]
    return min(near, key=lambda one: (one.num_changes, -one.accuracy))


@dataclass(frozen=True, kw_only=True)
class _Case:
    teacher: Teacher
    images: Images
    runtime: Runtime
    orders: Sequence[KnownOrder]
    now: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Hits of the teacher as it is, (N,)."""
    guess: float = 0.0
    is_a_guess: bool = False

    def searched(
        self, found: Sequence[Better], alternatives: Sequence[Alternative]
    ) -> list[Better]:
        """Alternatives alone, then in pairs, then again with the order that was found."""
        found = list(found)
        usual = [one for one in alternatives if self.is_a_guess or not one.is_costly]
        rounds = [
            usual,
            _pairs(alternatives) if self.is_a_guess else [],
        ]
        for some in rounds:
            if not _is_settled(found):
                found += self.tried(some)
        best = _simplest(found)
        if (
            best is not None
            and best.order is not None
            and (best.alternative or best.accuracy < 0.98)
        ):
            known = KnownOrder(what=best.order_name, order=best.order)
            found += replace(self, orders=(known,), is_a_guess=True).tried([*rounds[0], *rounds[1]])
        return found

    def logits(self, alternative: Alternative | None, *, count: int | None = None) -> Tensor:
        """Logits of the first ``count`` images, (count, C) float32 on the CPU."""
        teacher, pixels = self.teacher, self.images.pixels[:count]
        mean, std, is_bgr = teacher.mean, teacher.std, teacher.is_bgr
        change: Change | None = None
        if alternative is not None:
            mean, std = alternative.mean or mean, alternative.std or std
            is_bgr ^= alternative.swaps_channels
            change = alternative.change
        normalise = Normaliser(mean=mean, std=std, device=self.runtime.device, is_bgr=is_bgr)
        of_batches = alternative is not None and alternative.batch_statistics
        parts = []
        with torch.no_grad(), _Statistics(teacher.model, of_batches=of_batches):
            one = pixels[:1] if change is None else change(pixels[:1])
            larger = max(1.0, one.numel() / pixels[:1].numel())
            size = BATCH if of_batches else max(1, int(self.images.batch_size / larger))
            for some in torch.split(pixels, size):  # type: ignore[no-untyped-call]
                batch = Batch(
                    images=some if change is None else change(some),
                    labels=torch.zeros(len(some), dtype=torch.int64),
                    indices=torch.arange(len(some)),
                    soft_labels=None,
                    selected=None,
                )
                outputs, _ = teacher_outputs(teacher.model, normalise, batch, runtime=self.runtime)
                parts.append(outputs.float().cpu())
        return torch.cat(parts).nan_to_num()

    def tried(self, alternatives: Sequence[Alternative]) -> list[Better]:
        """Better alternatives among those that are best on a few images; the best first.

        Known orders of the classes are tried with each if the teacher is no better than a guess.
        """
        count = FIRST_LOOK_OF_A_GUESS if self.is_a_guess else FIRST_LOOK
        labels, now = self.images.labels[:count], float(self.now[:count].sum())
        orders = [None, *(known.order for known in self.orders if self.is_a_guess)]
        ranked = []
        for alternative in alternatives:
            try:
                logits = self.logits(alternative, count=count)
            except UNFIT:
                continue  # the network does not take such images
            gain = float(hits_of(logits, labels).sum()) - now
            if not self.is_a_guess and gain < LEAST_ON_FIRST_LOOK:
                continue
            ranked.append((max(_rank(logits, labels, order) for order in orders), alternative))
        ranked.sort(key=lambda one: one[0], reverse=True)
        found: list[tuple[tuple[float, float], Better]] = []
        for _, alternative in ranked[:NUM_FINALISTS]:
            try:
                logits = self.logits(alternative)
            except UNFIT:
                continue  # nor so many of them
            better = self._judged(hits_of(logits, self.images.labels), alternative)
            if self.is_a_guess:
                better += self.better_orders(logits, alternative)
            found += [(_rank(logits, self.images.labels, one.order), one) for one in better]
        return [one for _, one in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def better_orders(self, logits: Tensor, alternative: Alternative | None) -> list[Better]:
        """Orders of the classes with which the logits are right more often: known, then fitted."""
        labels, found = self.images.labels, []
        for known in self.orders:
            hits = hits_of(logits[:, known.order], labels)
            found += self._judged(hits, alternative, known)
        fitted = KnownOrder(what="another order of its classes", order=best_order(logits, labels))
        return [*found, *self._judged(fitted_hits(logits, labels), alternative, fitted)]

    def _judged(
        self, then: Tensor, alternative: Alternative | None, known: KnownOrder | None = None
    ) -> list[Better]:
        """The alternative, if it is better by more than chance and by enough to matter."""
        change = then - self.now
        gain, accuracy = float(change.mean()), float(then.mean())
        errors = float(change.sum()) / sqrt(max(float(change.square().sum()), 1.0))
        is_of_images = alternative is not None and alternative.concerns_images
        is_doubtful = is_of_images or (alternative is not None and known is not None)
        least = CONVINCING_IF_FITTED if is_doubtful else CONVINCING
        is_convincing = accuracy >= self.guess + least * (1 - self.guess)
        clear, hint = self._least_gains(gain, alternative)
        is_clear = errors >= CLEAR[0] and gain >= clear and is_convincing
        is_hint = errors >= HINT[0] and gain >= hint and not self.is_a_guess and not is_doubtful
        is_hint |= is_of_images and errors >= HINT[0] and gain >= hint and is_convincing
        if not is_clear and not is_hint:
            return []
        return [
            Better(
                alternative=alternative,
                order=None if known is None else known.order,
                order_name="" if known is None else known.what,
                accuracy=accuracy,
                is_clear=is_clear,
            )
        ]

    def _least_gains(self, gain: float, alternative: Alternative | None) -> tuple[float, float]:
        """Accuracy by which an alternative must be better, to be clear and to be a hint."""
        if alternative is not None and alternative.concerns_images:
            return CLEAR_OF_IMAGES, HINT_OF_IMAGES
        if self.is_a_guess:
            return CLEAR[1], HINT[1]
        corrected = gain / max(1 - float(self.now.mean()), 1e-9)
        if corrected >= NEARLY_ALL[1]:
            return CLEAR[1], NEARLY_ALL[0]
        if alternative is not None and alternative.may_adapt:
            return 1.0, HINT[1] if corrected >= MOST else 1.0
        return CLEAR_OF_A_GOOD_ONE, HINT[1]


def _is_settled(found: Sequence[Better]) -> bool:
    """True if the best that was found leaves little to find."""
    return any(one.is_clear and one.accuracy >= GOOD for one in found)


def _rank(logits: Tensor, labels: Tensor, order: Order | None = None) -> tuple[float, float]:
    """Accuracy, and the mean log-probability of the label, which decides between equals."""
    if order is not None:
        logits = logits[:, order]
    likely = logits.log_softmax(dim=1).gather(1, labels[:, None]).clamp_min(-10.0)
    return round(float(hits_of(logits, labels).mean()) / 0.03), float(likely.mean())


class _Statistics:
    """Let batch normalisation use the statistics of batches for a while, and keep its own."""

    def __init__(self, model: nn.Module, *, of_batches: bool) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._norms = norms if of_batches else []
        self._kept: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        self._kept = [{n: b.clone() for n, b in norm.named_buffers()} for norm in self._norms]
        for norm in self._norms:
            norm.training = True

    def __exit__(self, *_: object) -> None:
        for norm, kept in zip(self._norms, self._kept, strict=True):
            norm.training = False
            for name, buffer in norm.named_buffers():
                buffer.copy_(kept[name])
