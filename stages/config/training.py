"""Settings of `train-student` and `train-teacher`."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from pipeline.methods.catalogue import METHODS, Method
from stages.config.types import (
    Count,
    Name,
    NotNegative,
    OpenUnit,
    Positive,
    PositiveShare,
    Section,
    Seed,
    Share,
    TrainingPrecision,
    UserPath,
    refuse_unused,
)

MethodName: TypeAlias = Literal[
    "kd",
    "dkd",
    "nkd",
    "dist",
    "mlkd",
    "fitnet",
    "rkd",
    "pkt",
    "sp",
    "cc",
    "crd",
    "simkd",
]


class OptimiserConfig(Section):
    """Settings of training, for teachers and students alike."""

    arch: str = "resnet8a"
    """Architecture of the network.

    A network of heartcut's zoo, such as "resnet20", or torchvision:NAME, timm:NAME,
    package.module:callable."""
    head: str = ""
    """Name of the classifier module in a network of torchvision, timm or your own.

    Empty, heartcut searches for it: the last linear layer whose output is the network's output."""
    epochs: Count = 10
    """Number of passes over the training samples."""
    batch_size: Count = 256
    """Images per batch, over all processes together."""
    accumulate: Count = 1
    """Number of batches whose gradients are averaged into one optimiser step.

    The default takes a step after every batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser: SGD with momentum, or AdamW."""
    lr: Positive = 0.3
    """Peak learning rate, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, from 0 to below 1."""
    nesterov: bool = True
    """Use Nesterov momentum with SGD."""
    weight_decay: NotNegative = 5e-4
    """Weight decay, 0 or more. It is decoupled from the gradient with AdamW."""
    decay_norms: bool = True
    """Apply weight decay to biases and normalisation scales as well."""
    clip_norm: Positive | None = None
    """Largest Euclidean norm of the gradient over all weights, above 0; longer ones are shortened.

    Unset, gradients are not clipped."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy with true labels, from 0 to below 1.

    Soft labels are not smoothed. The default does not smooth."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the weights, from 0 to below 1.

    Above 0, the averaged network is evaluated and saved. The default keeps no average."""
    schedule: Literal["one-cycle", "cosine", "multi-step", "constant"] = "one-cycle"
    """Schedule of the learning rate.

    "one-cycle" rises to `lr` and falls to near 0, "cosine" falls from `lr` to 0, "multi-step"
    multiplies by `gamma` at `milestones`, and "constant" stays at `lr`."""
    warmup: OpenUnit = 0.3
    """Fraction of the steps, between 0 and 1, in which "one-cycle" rises to `lr`."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs, counted from 1, after which "multi-step" multiplies the rate by `gamma`.

    "multi-step" requires at least one."""
    gamma: OpenUnit = 0.1
    """Factor, between 0 and 1, that "multi-step" multiplies the rate by."""
    resolutions: tuple[tuple[Count, Annotated[int, Field(ge=4, le=1024)]], ...] = ()
    """List of [epoch, side] pairs: from that epoch on, crops of that side in pixels are trained on.

    Epochs count from 1, and the first pair must be for epoch 1. Sides are from 4 to 1,024. It needs
    `views.kind = "rrc-flip"`. Empty, training uses `views.size`, the size that networks are
    evaluated at."""
    seed: Seed = 0
    """Seed of the initial weights and of the order and augmentation of the images."""
    precision: TrainingPrecision = "auto"
    """Numeric precision of training.

    "bf16" and "fp16" use autocast, "fp16" with a scaled loss. "auto" is bf16 where the hardware
    supports it, else fp32. "fp64" is for exact comparisons."""
    compile: bool = False
    """Compile the network with torch.compile.

    It takes minutes at the start and makes every step faster."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of loader threads.

    0 takes one on a CPU and one per core next to an accelerator."""
    mean_of_last: Count = 3
    """Number of last epochs that the reported mean held-out accuracy is taken over."""
    checkpoint_minutes: Positive = 10.0
    """Minutes between checkpoints within an epoch, above 0.

    A checkpoint is also written after every epoch. Interrupted runs resume from the last one."""

    @model_validator(mode="after")
    def _has_no_setting_without_effect(self) -> Self:
        unused = {
            "momentum": self.optimizer != "sgd",
            "nesterov": self.optimizer != "sgd",
            "warmup": self.schedule != "one-cycle",
            "milestones": self.schedule != "multi-step",
            "gamma": self.schedule != "multi-step",
        }
        because = f"optimizer = {self.optimizer!r}, schedule = {self.schedule!r}"
        refuse_unused(self, unused, because=because)
        if "+simkd" in self.arch:
            raise ValueError(
                f"arch is {self.arch!r} (expected a network without a reused head, which method = "
                "'simkd' adds)"
            )
        refuse_unused(self, {"decay_norms": self.weight_decay == 0}, because="weight_decay = 0")
        if self.schedule == "multi-step" and not self.milestones:
            raise ValueError("milestones must be set for schedule = 'multi-step'")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false where momentum is 0")
        starts = [epoch for epoch, _ in self.resolutions]
        if starts and (starts[0] != 1 or starts != sorted(set(starts)) or starts[-1] > self.epochs):
            raise ValueError(
                f"resolutions must begin at different epochs, the first at 1 and the last at "
                f"{self.epochs} or before, got {starts}"
            )
        return self

    def side_in(self, epoch: int) -> int | None:
        """Side in pixels of the images of an epoch, counted from 0; None: the side of the views."""
        sides = [side for start, side in self.resolutions if start <= epoch + 1]
        return sides[-1] if sides else None


class TrainTeacherConfig(OptimiserConfig):
    """Settings of `heartcut train-teacher`, which trains a teacher on the true labels."""

    name: Name = "teacher"
    """First part of the name of the run's folder.

    Up to 64 letters, digits, ".", "_" and "-"."""
    fraction: PositiveShare = 1.0
    """Fraction of every class that the teacher is trained on, above 0 and at most 1.

    Smaller values make a worse teacher, for studies."""
    label_noise: Share = 0.0
    """Fraction of every class, from 0 to 1, that is trained with a wrong label.

    Larger values make a worse teacher, for studies."""


class DkdConfig(Section):
    """Settings of decoupled knowledge distillation (`method = "dkd"`)."""

    alpha: NotNegative = 1.0
    """Weight of the true class's part of the loss, 0 or more."""
    beta: NotNegative = 8.0
    """Weight of the other classes' part of the loss, 0 or more.

    Publications choose it for each pair of networks."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    """Number of epochs in which the weight of distillation rises to its full value.

    0 uses the full weight from the start."""


class NkdConfig(Section):
    """Settings of normalised knowledge distillation (`method = "nkd"`)."""

    gamma: NotNegative = 1.5
    """Weight of the other classes' part of the loss, 0 or more."""


class DistConfig(Section):
    """Settings of distillation by correlations (`method = "dist"`)."""

    beta: NotNegative = 1.0
    """Weight of the correlation over the classes of a sample, 0 or more."""
    gamma: NotNegative = 1.0
    """Weight of the correlation over the samples of a class, 0 or more."""


class MlkdConfig(Section):
    """Settings of multi-level logit distillation (`method = "mlkd"`)."""

    temperatures: tuple[Positive, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    """Temperatures that the soft labels are compared at: one or more different numbers above 0."""

    @model_validator(mode="after")
    def _has_temperatures(self) -> Self:
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperatures must be one or more different numbers")
        return self


class RkdConfig(Section):
    """Settings of relational knowledge distillation (`method = "rkd"`)."""

    distance: NotNegative = 25.0
    """Weight of the distances between pairs of samples, 0 or more."""
    angle: NotNegative = 50.0
    """Weight of the angles within triplets of samples, 0 or more."""


class CcConfig(Section):
    """Settings of correlation congruence (`method = "cc"`)."""

    gamma: Positive = 0.4
    """Coefficient of the Gaussian kernel, above 0; the kernel is expanded to second order."""


class CrdConfig(Section):
    """Settings of contrastive representation distillation (`method = "crd"`)."""

    dim: Count = 128
    """Dimension of the two embeddings."""
    negatives: Count = 16_384
    """Number of negative samples that each sample is contrasted with."""
    temperature: Positive = 0.07
    """Temperature of the contrastive loss, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the memory banks, from 0 to below 1."""


class TrainStudentConfig(OptimiserConfig):
    """Settings of `heartcut train-student`, which trains a student from the cached labels."""

    name: Name = "student"
    """First part of the name of the run's folder.

    Up to 64 letters, digits, ".", "_" and "-"."""
    distil: bool = True
    """Distil from the teacher; false trains on the true labels alone, without a teacher."""
    method: MethodName = "kd"
    """Method of distillation; `heartcut methods` lists what each one needs."""
    lambda_ce: NotNegative | None = None
    """Weight of the cross-entropy with the true label on distilled samples, 0 or more.

    Unset, it is the method's own."""
    lambda_kd: NotNegative | None = None
    """Weight of the distillation of soft labels on distilled samples, 0 or more.

    Unset, it is the method's own."""
    lambda_feature: NotNegative | None = None
    """Weight of the distillation of features on distilled samples, 0 or more.

    It applies to methods that distil features. Unset, it is the method's own."""
    dkd: DkdConfig = Field(default_factory=DkdConfig)
    """Settings of `method = "dkd"`."""
    nkd: NkdConfig = Field(default_factory=NkdConfig)
    """Settings of `method = "nkd"`."""
    dist: DistConfig = Field(default_factory=DistConfig)
    """Settings of `method = "dist"`."""
    mlkd: MlkdConfig = Field(default_factory=MlkdConfig)
    """Settings of `method = "mlkd"`."""
    rkd: RkdConfig = Field(default_factory=RkdConfig)
    """Settings of `method = "rkd"`."""
    cc: CcConfig = Field(default_factory=CcConfig)
    """Settings of `method = "cc"`."""
    crd: CrdConfig = Field(default_factory=CrdConfig)
    """Settings of `method = "crd"`."""
    selection: UserPath | None = None
    """File of the selection table to train from.

    Unset, it is the table that `heartcut select` writes for this configuration."""
    soft_labels: UserPath | None = None
    """Folder of the soft labels to train from.

    Unset, it is the one next to the selection table."""
    augmentation: Literal["auto", "cached", "fresh"] = "auto"
    """Augmentation of the training images.

    "cached" repeats the cached views, "fresh" draws a new view in every epoch. "auto" is "cached"
    if every view has its own soft label, else "fresh"."""
    online: bool = False
    """Run the teacher during training instead of reading its cached labels.

    It costs a forward pass of the teacher per image, and is for comparisons."""

    @model_validator(mode="after")
    def _has_no_distillation_without_effect(self) -> Self:
        names = ("method", "lambda_ce", "lambda_kd", "lambda_feature", "selection", "soft_labels")
        without = dict.fromkeys((*names, "online", *METHOD_TABLES), not self.distil)
        refuse_unused(self, without, because="distil = false")
        others = {table: table != self.method for table in METHOD_TABLES}
        others["lambda_feature"] = not METHODS[self.method].needs_features
        refuse_unused(self, others, because=f"method = {self.method!r}")
        if self.distil and not any(self.weights[1:]):
            raise ValueError(
                "lambda_kd and lambda_feature must not both be 0; to train without a teacher, set "
                "distil = false"
            )
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights lambda_ce, lambda_kd and lambda_feature, as set or the method's own."""
        method: Method = METHODS[self.method]
        return (
            method.lambda_ce if self.lambda_ce is None else self.lambda_ce,
            method.lambda_kd if self.lambda_kd is None else self.lambda_kd,
            method.lambda_feature if self.lambda_feature is None else self.lambda_feature,
        )

    @property
    def needs_features(self) -> bool:
        """True if the teacher's features are distilled."""
        return METHODS[self.method].needs_features and self.weights[2] > 0

    @property
    def method_settings(self) -> Section | None:
        """The method's own table; None if it has none."""
        table: Section | None = getattr(self, self.method, None)
        return table


METHOD_TABLES = tuple(name for name, method in METHODS.items() if method.settings)
"""Methods that have settings, each in a table of its name."""
