"""Settings of `cache-teacher`: the teacher, its inputs, and what a cache keeps of its outputs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.types import (
    ClassOfTeacher,
    Count,
    Positive,
    PrecisionChoice,
    Section,
    Triple,
    UserPath,
    refuse_unused,
)


class CacheTeacherConfig(Section):
    """Settings of `heartcut cache-teacher`, which runs the teacher once and caches its outputs."""

    checkpoint: UserPath | None = None
    """File with the teacher's weights.

    Unset, the teacher is the one that `heartcut train-teacher` trains with this configuration."""
    checkpoint_key: str = ""
    """Key of the network in `checkpoint`, for files that hold several, such as "state_dict_ema".

    Dots separate levels. The first part of the network's names works as well. Empty, heartcut takes
    the only network, or the plain one before a moving average of it."""
    arch: str = ""
    """Architecture of `checkpoint`; required with a checkpoint.

    A network of heartcut's zoo, such as "resnet56", or torchvision:NAME, timm:NAME,
    package.module:callable."""
    head: str = ""
    """Name of the classifier module in a network of torchvision, timm or your own.

    Empty, heartcut searches for it: the last linear layer whose output is the network's output."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes of the checkpoint's head, from 2.

    Unset, it is the number of lines of `class_names`, or the number of classes of the data set."""
    class_names: UserPath | None = None
    """Text file with the names of the head's classes, one a line, in the order of the head's rows.

    The classes of the data set are found by name; the head's other classes are left out. Unset, the
    head's classes are those of the data set, in their order."""
    class_map: dict[str, ClassOfTeacher] = Field(default_factory=dict)
    """Table that maps a class of the data set to a class of the head.

    A value is a row of the head, counted from 0, or a name of `class_names`. It is needed only
    where the names differ."""
    class_order: Literal["", "text", "natural"] = ""
    """Order of the head's classes, for a head with the classes of the data set.

    "text" is the order of the data set, as torchvision's ImageFolder sorts folders: 1, 10, 2.
    "natural" is timm's order, which sorts numbers by value and ignores case: 1, 2, 10. Empty is
    "text", and an error where all class names are numbers that the two sort differently."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the colour channels that the teacher was trained with.

    Networks trained on images from OpenCV or Caffe often expect "bgr". `mean` and `std` are always
    of red, green and blue."""
    mean: Triple | None = None
    """Mean of red, green and blue that the teacher's inputs are normalised with, for pixels from 0
    to 1: three numbers from 0 to 1.

    Unset, it is the mean of the data set. Set it together with `std`."""
    std: Triple | None = None
    """Standard deviation of red, green and blue that the teacher's inputs are normalised with, for
    pixels from 0 to 1: three numbers above 0, at most 1.

    Unset, it is the deviation of the data set. Set it together with `mean`."""
    check_teacher: Literal["stop", "warn", "off"] = "stop"
    """Reaction to a teacher that would be clearly better with another setting.

    Before the teacher runs, heartcut compares its accuracy on a few hundred images with a guess and
    with the usual mistakes: order of classes, order of channels, normalisation, size. "stop" ends
    with an error that names the setting, "warn" prints it and continues, "off" skips the check."""
    trained_on_held_out: bool = True
    """State that the checkpoint may have been trained on the held-out images.

    With the default, selection scores samples by cross-fitting instead of by the held-out loss. Set
    it to false if the checkpoint was trained without these images."""
    precision: PrecisionChoice = "auto"
    """Numeric precision of the teacher's forward passes.

    "auto" is bf16 where the hardware supports it, else fp32."""
    batch_size: Count | None = None
    """Images per forward pass of the teacher. At most, it changes the rounding of what is cached.

    Unset, it is the largest power of two up to 512 with which the largest output of a layer stays
    below 32 MiB on a CPU, or 1 GiB on an accelerator."""
    features: bool = True
    """Cache the teacher's penultimate features as well as its logits.

    Influence selection, head repair and feature distillation need them. Without them the cache is
    smaller."""
    top_k: Annotated[int, Field(ge=0, le=4096)] = 0
    """Number of logits kept per image and view, from 0 to 4,096; 0 keeps all of them.

    Above 0 the cache keeps the largest ones, the label's, and the log-sum-exp of all at
    `temperatures`. Use it for data sets with many classes."""
    temperatures: tuple[Positive, ...] = (1.0, 4.0)
    """Temperatures at which a top-k cache can be used.

    It must include 1 and the temperatures of `select`. It has no effect with `top_k = 0`."""
    shard_rows: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Samples per stored object, from 1 to 1,048,576.

    A command that is stopped keeps the finished objects. It also keeps the images of the object at
    work, except for those of the last 30 seconds before a kill.

    Unset, it is 16,384, or fewer such that an object has at most 64 MiB."""
    compression: Literal["zstd", "none"] = "zstd"
    """Lossless compression of the stored arrays.

    "none" is faster to write and about a tenth larger."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of loader threads.

    0 takes one on a CPU and one per core next to an accelerator."""

    @model_validator(mode="after")
    def _describes_its_checkpoint(self) -> Self:
        if self.checkpoint is not None and not self.arch:
            raise ValueError("arch must be set where checkpoint is")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be set together")
        if self.class_order and (self.class_map or self.class_names is not None):
            raise ValueError("class_order has no effect with class_names or class_map; remove it")
        if self.class_map and self.class_names is None:
            if self.num_classes is None:
                raise ValueError("num_classes or class_names must be set where class_map is")
            if any(isinstance(row, str) for row in self.class_map.values()):
                raise ValueError("class_names must be set where class_map names classes")
        if self.checkpoint is None:
            unused = dict.fromkeys(_OF_A_CHECKPOINT, True)
            refuse_unused(self, unused, because="no checkpoint")
        refuse_unused(self, {"temperatures": self.top_k == 0}, because="top_k = 0")
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperatures must be one or more different numbers")
        return self


_OF_A_CHECKPOINT = (
    *("checkpoint_key", "arch", "head", "num_classes", "class_names", "class_map", "class_order"),
    *("channels", "mean", "std", "check_teacher", "trained_on_held_out"),
)
