"""How students and teachers are trained: the knobs of `train-student` and `train-teacher`."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from pipeline.methods.catalogue import METHODS, Method
from stages.config.types import (
    Count,
    NotNegative,
    OpenUnit,
    Positive,
    PositiveShare,
    Section,
    Seed,
    Share,
    TrainingPrecision,
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
    """How weights are trained, for teachers and students alike."""

    arch: str = "resnet8a"
    """A network of the zoo, torchvision:NAME, timm:NAME, or package.module:callable."""
    head: str = ""
    """Name of the classifier within a network of torchvision, timm or your own; empty: found."""
    epochs: Count = 10
    batch_size: Count = 256
    accumulate: Count = 1
    """Batches whose gradients are averaged into one step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.3
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    decay_norms: bool = True
    """False: no weight decay on biases and on the scales of normalisation."""
    clip_norm: Positive | None = None
    """Longest gradient, in the Euclidean norm over all weights."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the cross-entropy with hard labels; soft labels stay as they are."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0: evaluate and keep the moving average of the weights over steps."""
    schedule: Literal["one-cycle", "cosine", "multi-step", "constant"] = "one-cycle"
    warmup: OpenUnit = 0.3
    """Share of the steps in which one-cycle climbs to `lr`."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs after which multi-step multiplies the rate by `gamma`."""
    gamma: OpenUnit = 0.1
    resolutions: tuple[tuple[Count, Annotated[int, Field(ge=4, le=1024)]], ...] = ()
    """[epoch, side] pairs: from that epoch on, counted from 1, random resized crops are trained on
    at that side in pixels; unset: at `views.size`, at which networks are evaluated anyway."""
    seed: Seed = 0
    precision: TrainingPrecision = "auto"
    """Autocast to bf16, or to fp16 with a scaled loss, or fp32; auto: bf16 where the hardware has
    it, else fp32. fp64 is for comparisons that rounding must not decide."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at first, faster steps then."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Loader threads; 0: one beside a CPU, one per core beside an accelerator."""
    mean_of_last: Count = 3
    """Epochs over which the reported mean held-out accuracy is taken."""
    checkpoint_minutes: Positive = 10.0
    """Between checkpoints within an epoch; there is one after every epoch too."""

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
                "'simkd' gives it)"
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
        """Side in pixels of the images of an epoch, counted from 0; None: that of the views."""
        sides = [side for start, side in self.resolutions if start <= epoch + 1]
        return sides[-1] if sides else None


class TrainTeacherConfig(OptimiserConfig):
    """betons -> a teacher of our own: plain training on T."""

    name: str = "teacher"
    fraction: PositiveShare = 1.0
    """Share of every class of T that it is trained on."""
    label_noise: Share = 0.0
    """Share of every class that is taught another class: for studies of teachers that err."""


class DkdConfig(Section):
    """Decoupled knowledge distillation."""

    alpha: NotNegative = 1.0
    """Weight of the target class's part."""
    beta: NotNegative = 8.0
    """Weight of the other classes' part; the literature chooses it for each pair."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    """Epochs over which the term's weight climbs to its full size."""


class NkdConfig(Section):
    """Normalised knowledge distillation."""

    gamma: NotNegative = 1.5
    """Weight of the other classes' part."""


class DistConfig(Section):
    """Distillation from a stronger teacher, by correlations."""

    beta: NotNegative = 1.0
    """Weight of the correlation over the classes of a sample, within the term."""
    gamma: NotNegative = 1.0
    """Weight of the correlation over the samples of a class."""


class MlkdConfig(Section):
    """Multi-level logit distillation."""

    temperatures: tuple[Positive, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)

    @model_validator(mode="after")
    def _has_temperatures(self) -> Self:
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperatures must be one or more different numbers")
        return self


class RkdConfig(Section):
    """Relational knowledge distillation."""

    distance: NotNegative = 25.0
    angle: NotNegative = 50.0


class CcConfig(Section):
    """Correlation congruence."""

    gamma: Positive = 0.4
    """Of the Gaussian kernel, which is expanded to second order."""


class CrdConfig(Section):
    """Contrastive representation distillation."""

    dim: Count = 128
    """Size of the two embeddings."""
    negatives: Count = 16_384
    temperature: Positive = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of the memory banks."""


class TrainStudentConfig(OptimiserConfig):
    """betons + selection + soft labels -> run."""

    name: str = "student"
    distil: bool = True
    """False: plain training, with nothing to distil."""
    method: MethodName = "kd"
    """What is distilled; `heartcut methods` tells what each needs."""
    lambda_ce: NotNegative | None = None
    """Weight of cross-entropy on distilled samples; unset: the method's own, as the two below."""
    lambda_kd: NotNegative | None = None
    """Weight of the distillation of soft labels on distilled samples."""
    lambda_feature: NotNegative | None = None
    """Weight of the distillation of features on distilled samples."""
    dkd: DkdConfig = Field(default_factory=DkdConfig)
    nkd: NkdConfig = Field(default_factory=NkdConfig)
    dist: DistConfig = Field(default_factory=DistConfig)
    mlkd: MlkdConfig = Field(default_factory=MlkdConfig)
    rkd: RkdConfig = Field(default_factory=RkdConfig)
    cc: CcConfig = Field(default_factory=CcConfig)
    crd: CrdConfig = Field(default_factory=CrdConfig)
    selection: Path | None = None
    """A selection table; unset: the one that `select` makes of these settings."""
    soft_labels: Path | None = None
    """Its soft labels; unset: the ones beside the table."""
    augmentation: Literal["auto", "cached", "fresh"] = "auto"
    """Cached views, or a fresh one every epoch; auto: cached where soft labels are per view."""
    online: bool = False
    """Run the teacher in the loop, on the student's very images, to compare with."""

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
                "lambda_kd and lambda_feature must not both be 0; to distil nothing, set "
                "distil = false"
            )
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """lambda_ce, lambda_kd, lambda_feature, as set or as the method's own."""
        method: Method = METHODS[self.method]
        return (
            method.lambda_ce if self.lambda_ce is None else self.lambda_ce,
            method.lambda_kd if self.lambda_kd is None else self.lambda_kd,
            method.lambda_feature if self.lambda_feature is None else self.lambda_feature,
        )

    @property
    def needs_features(self) -> bool:
        """Whether the teacher's features are distilled."""
        return METHODS[self.method].needs_features and self.weights[2] > 0

    @property
    def method_settings(self) -> Section | None:
        """The method's own table; None where it has none."""
        table: Section | None = getattr(self, self.method, None)
        return table


METHOD_TABLES = tuple(name for name, method in METHODS.items() if method.settings)
"""Methods that have settings of their own, each in a table of its name."""
