"""Settings of every stage: frozen, typed, checked once, with their defaults. Imports no torch.

A configuration is one TOML file with a table per stage (`config.file` reads it). Unknown keys are
errors, and so are settings that would have no effect.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.origin import WithOrigin
from stages.config.prepare import PrepareConfig, ViewsConfig
from stages.config.select import INFLUENCE_STRATEGIES, SelectConfig
from stages.config.sweep import SweepConfig
from stages.config.training import TrainStudentConfig, TrainTeacherConfig
from stages.config.types import (
    ClassOfTeacher,
    Count,
    NamedOverrides,
    Place,
    Positive,
    PrecisionChoice,
    Section,
    Seeds,
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


class CompareConfig(Section):
    """Settings of `heartcut compare`, which trains the student under several settings and seeds."""

    seeds: Seeds = (0,)
    """Seeds that every variant is trained with; one run each.

    At least one, and no seed twice. With a single seed the table has no standard deviation."""
    variants: NamedOverrides = Field(default_factory=dict)
    """Table of variants: a name maps to a list of overrides, each as for `--set`.

    Every variant is a row of the table that the command prints. An empty list is the configuration
    as it is. Variants may change
    `select` and `train_student` only. Empty, one variant is trained: the configuration as it is."""


class Config(WithOrigin):
    """A whole configuration file: the workspace, and a table for each stage."""

    workspace: UserPath = Path("work")
    """Folder that heartcut writes everything into."""
    caches: Place = ""
    """Folder or bucket in which teacher caches are written: a path, s3://..., gs://... or az://...

    Empty, caches are written to `caches` in the workspace."""
    share: Place = ""
    """Folder or bucket with your team's teacher caches: a path, s3://..., gs://... or az://...

    `heartcut cache-teacher` fetches a cache from here instead of running the teacher. Empty,
    nothing is fetched."""
    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    """Settings of `heartcut prepare`."""
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    """Augmentation of the training images."""
    train_teacher: TrainTeacherConfig = Field(default_factory=TrainTeacherConfig)
    """Settings of `heartcut train-teacher`."""
    cache_teacher: CacheTeacherConfig = Field(default_factory=CacheTeacherConfig)
    """Settings of `heartcut cache-teacher`."""
    select: SelectConfig = Field(default_factory=SelectConfig)
    """Settings of `heartcut select`."""
    train_student: TrainStudentConfig = Field(default_factory=TrainStudentConfig)
    """Settings of `heartcut train-student`."""
    compare: CompareConfig = Field(default_factory=CompareConfig)
    """Settings of `heartcut compare`."""
    sweep: SweepConfig = Field(default_factory=SweepConfig)
    """Settings of `heartcut sweep`."""

    @model_validator(mode="after")
    def _keeps_the_temperatures_that_it_uses(self) -> Self:
        """Require the temperatures of `select` among those of a top-k cache."""
        if self.cache_teacher.top_k == 0 or self.select.cache is not None:
            return self
        used = {1.0, self.select.revise_at or self.select.temperature}
        if self.select.strategy in INFLUENCE_STRATEGIES:
            used.add(self.select.influence.temperature)
        if self.select.standardise and self.select.repair == "none":
            raise ValueError(
                "select.standardise must be false where cache_teacher.top_k is above 0: a top-k "
                "cache lacks the mean and deviation of all logits"
            )
        missing = sorted(used - set(self.cache_teacher.temperatures))
        if missing:
            listed = ", ".join(f"{value:g}" for value in missing)
            raise ValueError(
                f"cache_teacher.temperatures must include {listed}: `select` uses it, and a top-k "
                "cache can be used only at the temperatures that it was made for"
            )
        return self

    @model_validator(mode="after")
    def _changes_the_side_of_crops_only(self) -> Self:
        for name in ("train_teacher", "train_student"):
            if getattr(self, name).resolutions and self.views.kind != "rrc-flip":
                raise ValueError(
                    f'{name}.resolutions has no effect with views.kind = "{self.views.kind}"; '
                    "remove it"
                )
        return self

    @property
    def data_folder(self) -> Path:
        return self.workspace / "data"

    @property
    def caches_folder(self) -> Path:
        return self.workspace / "caches"

    @property
    def selections_folder(self) -> Path:
        return self.workspace / "selections"

    @property
    def runs_folder(self) -> Path:
        return self.workspace / "runs"
