"""The usual mistakes with a teacher, as alternatives that `diagnosis` tries."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.class_map import natural_rows
from pipeline.teacher.diagnosis import Alternative, KnownOrder
from pipeline.teacher.frozen import Teacher

Triple: TypeAlias = tuple[float, float, float]

_RAW: Final = (1 / 255, 1 / 255, 1 / 255)
NORMALISATIONS: Final[dict[str, tuple[Triple, Triple]]] = {
    "ImageNet's normalisation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inputs from -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "inputs from 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "inputs from 0 to 255": ((0.0, 0.0, 0.0), _RAW),
    "CIFAR-10's normalisation": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100's normalisation": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "inputs of (pixels - 127.5) / 128": ((0.5, 0.5, 0.5), (0.50196, 0.50196, 0.50196)),
    "inputs of pixels - ImageNet's mean, as Caffe's": ((0.485, 0.456, 0.406), _RAW),
    "CLIP's normalisation": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "MNIST's normalisation": ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
}
_LIKE_ANOTHER: Final = (
    "CIFAR-100's normalisation",
    "CLIP's normalisation",
    "inputs of (pixels - 127.5) / 128",
)
"""Normalisations that hardly differ from others, so they are tried only for a guess."""
_ENOUGH_BATCHES: Final = 50
"""Batches after which running statistics hardly contain their first values."""
SIDES: Final = (32, 64, 128, 224)


def usual_mistakes(
    teacher: Teacher,
    *,
    dataset_mean: Triple,
    dataset_std: Triple,
    side: tuple[int, int],
    size_setting: str,
) -> list[Alternative]:
    """List the alternatives for this teacher, without those that change nothing.

    Args:
        teacher: the teacher as it is set.
        dataset_mean: mean of the data set, for pixels from 0 to 1.
        dataset_std: standard deviation of the data set.
        side: height and width of the images that it sees.
        size_setting: setting that gives this size.
    """
    of_data = {"the data set's normalisation": (dataset_mean, dataset_std)}
    return [
        # Another contrast makes up for poor statistics, so it says nothing about the settings.
        *([] if _has_poor_statistics(teacher) else _normalisations(teacher, of_data)),
        _channels(teacher),
        *_sizes(side, size_setting),
        _other_images("grey images", "make the images grey", _grey),
        _other_images("inverted images", "invert the brightness of the images", _inverted),
        _other_images(
            "images with rows and columns exchanged", "exchange rows and columns", _transposed
        ),
        _other_images("images turned by 180 degrees", "turn the images by 180 degrees", _turned),
        *_statistics(teacher),
    ]


NATURAL = "its classes in natural order, numbers by value"
TEXT = "its classes in the order of text"


def usual_orders(class_names: Sequence[str]) -> list[KnownOrder]:
    """Orders that heads often have, other than that of the data set."""
    count = len(class_names)
    caseless = np.argsort(np.argsort(np.array([n.casefold() for n in class_names]), kind="stable"))
    numbers = np.arange(count)
    named = {
        NATURAL: np.array(natural_rows(class_names)),
        "its classes in the order of the alphabet without case": caseless.astype(np.int64),
        "its classes in reverse order": count - 1 - numbers,
        "its classes shifted by one, as after a background class": (numbers + 1) % count,
        "its classes shifted back by one": (numbers - 1) % count,
    }
    found: list[KnownOrder] = []
    for what, order in named.items():
        is_new = not any(np.array_equal(order, other.order) for other in found)
        if is_new and not np.array_equal(order, numbers):
            found.append(KnownOrder(what=what, order=order))
    return found


def _normalisations(
    teacher: Teacher, others: dict[str, tuple[Triple, Triple]]
) -> list[Alternative]:
    exchanged = {"its mean in the order of blue, green, red": (teacher.mean[::-1], teacher.std)}
    known = {**others, **NORMALISATIONS, **exchanged}
    return [
        Alternative(
            what=what,
            fix=f"set `cache_teacher.mean = {_short(mean)}` and "
            f"`cache_teacher.std = {_short(std)}`",
            mean=mean,
            std=std,
            is_costly=what in _LIKE_ANOTHER,
            may_adapt=what in others,
        )
        for what, (mean, std) in known.items()
        if not np.allclose((mean, std), (teacher.mean, teacher.std), rtol=0.01, atol=1e-3)
    ]


def _short(values: Triple) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _channels(teacher: Teacher) -> Alternative:
    to, colours = ("rgb", "red, green, blue") if teacher.is_bgr else ("bgr", "blue, green, red")
    return Alternative(
        what=f"channels in the order of {colours}",
        fix=f'set `cache_teacher.channels = "{to}"`',
        swaps_channels=True,
    )


def _sizes(side: tuple[int, int], setting: str) -> list[Alternative]:
    """Images of half and twice the size, and of the usual sizes."""
    shorter = min(side)
    sides = dict.fromkeys([2 * shorter, shorter // 2, *SIDES])
    return [
        Alternative(
            what=f"images of {new} pixels",
            fix=f"set `{setting} = {new}`",
            change=_Resized(new / shorter),
            is_costly=new > 2 * shorter,
        )
        for new in sides
        if new != shorter and 8 <= new <= min(512, 8 * shorter)
    ]


class _Resized:
    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, images: Tensor) -> Tensor:
        size = [max(1, round(side * self._factor)) for side in images.shape[2:]]
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)


def _other_images(what: str, change: str, function: object) -> Alternative:
    assert callable(function)
    return Alternative(
        what=what,
        fix=f"{change} before `heartcut prepare`, as those of the teacher's training",
        change=function,
    )


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (images.float() * weights).sum(dim=1, keepdim=True)
    return grey.round().to(torch.uint8).expand_as(images)


def _inverted(images: Tensor) -> Tensor:
    return 255 - images


def _transposed(images: Tensor) -> Tensor:
    return images.transpose(2, 3)


def _turned(images: Tensor) -> Tensor:
    return images.flip(2, 3)


def _statistics(teacher: Teacher) -> list[Alternative]:
    """Statistics of batches, for running statistics that were hardly computed.

    Others are not doubted: those of batches often suit other images better.
    """
    if not _has_poor_statistics(teacher):
        return []
    return [
        Alternative(
            what="batch statistics in place of running statistics that were hardly computed",
            fix="save the checkpoint with the running mean and variance of its batch "
            "normalisation, which a pass over the training images in training mode computes",
            batch_statistics=True,
        )
    ]


def _has_poor_statistics(teacher: Teacher) -> bool:
    """True if running statistics are as they were made, or still contain much of that."""
    norms = [m for m in teacher.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(_is_fresh(norm) or 0 < _num_batches(norm) < _ENOUGH_BATCHES for norm in norms)


def _is_fresh(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and not mean.any() and bool((var == 1).all())


def _num_batches(norm: nn.modules.batchnorm._BatchNorm) -> int:
    counter = norm.num_batches_tracked
    return 0 if counter is None or norm.momentum is None else int(counter)
