"""Every knob of every stage: frozen, typed, checked once, defaults here only. Imports no torch.

A configuration is one TOML file with a table per stage (`config_file` reads it). Unknown keys are
refused; a setting that would have no effect is refused too.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config_types import (
    Count,
    NotNegative,
    OpenUnit,
    Positive,
    PositiveShare,
    PrecisionChoice,
    Section,
    Seed,
    Triple,
    refuse_unused,
)
from stages.select_config import INFLUENCE_STRATEGIES, SelectConfig


class PrepareConfig(Section):
    """images -> betons."""

    source: Literal["digits", "folder", "torchvision"] = "digits"
    path: Path | None = None
    """Folder with the split folders, or torchvision's root."""
    name: Literal["", "CIFAR10", "CIFAR100", "FashionMNIST"] = ""
    """torchvision's data set."""
    download: bool = False
    """Let torchvision fetch what is missing."""
    train: str = "train"
    """Name of the training split's folder."""
    test: str = "test"
    """Name of the test split's folder; empty: there is none, take `test_fraction`."""
    resize: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels: shorter side resized to it, centre kept. Unset: all are of one size."""
    test_fraction: OpenUnit = 0.2
    """Share of every class that becomes the test split where the source has none."""
    held_out_fraction: OpenUnit = 0.1
    """Share of every class that no training sees."""
    held_out_seed: Seed = 0
    order: Literal["canonical", "source"] = "canonical"
    """Of the samples: by content, the same for every team, or as the source lists them."""
    skip_corrupt: bool = False
    """Leave unreadable images out, and list them, instead of stopping."""

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> Self:
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path must be set for source = {self.source!r}")
        if self.source == "torchvision" and not self.name:
            raise ValueError("name must be set for source = 'torchvision'")
        unused = {
            "path": self.source == "digits",
            "name": self.source != "torchvision",
            "download": self.source != "torchvision",
            "resize": self.source != "folder",
            "skip_corrupt": self.source != "folder",
            "train": self.source != "folder",
            "test": self.source != "folder",
            "test_fraction": not (
                self.source == "digits" or (self.source == "folder" and not self.test)
            ),
        }
        refuse_unused(self, unused, because=f"source = {self.source!r}")
        return self


class ViewsConfig(Section):
    """Augmentation that both stages replay: crops of the zero-padded image, flips."""

    padding: Annotated[int, Field(ge=0, le=64)] = 4
    flip: bool = True
    count: Annotated[int, Field(ge=0, le=65_535)] | Literal["all"] = 4
    """Views beside the clean one: 0 none, n by seed, "all" every crop and flip once."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _views_differ_from_the_clean_image(self) -> Self:
        if self.count != 0 and self.padding == 0 and not self.flip:
            raise ValueError("count must be 0 where padding is 0 and flip is false")
        return self


class OptimiserConfig(Section):
    """How weights are trained, for teachers and students alike."""

    arch: str = "resnet8a"
    epochs: Count = 10
    batch_size: Count = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.3
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    schedule: Literal["one-cycle", "cosine", "multi-step", "constant"] = "one-cycle"
    warmup: OpenUnit = 0.3
    """Share of the steps in which one-cycle climbs to `lr`."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs after which multi-step multiplies the rate by `gamma`."""
    gamma: OpenUnit = 0.1
    seed: Seed = 0
    precision: PrecisionChoice = "auto"
    """bf16 autocast or fp32; auto: bf16 where the hardware has it."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Loader threads; 0: one beside a CPU, one per core beside an accelerator."""
    mean_of_last: Count = 3
    """Epochs over which the reported mean held-out accuracy is taken."""

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
        if self.schedule == "multi-step" and not self.milestones:
            raise ValueError("milestones must be set for schedule = 'multi-step'")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false where momentum is 0")
        return self


class TrainTeacherConfig(OptimiserConfig):
    """betons -> a teacher of our own: plain training on T."""

    name: str = "teacher"
    fraction: PositiveShare = 1.0
    """Share of every class of T that it is trained on."""


class CacheTeacherConfig(Section):
    """betons + teacher -> teacher cache."""

    checkpoint: Path | None = None
    """Weights of the teacher; unset: the run of `train-teacher` with this configuration."""
    arch: str = ""
    """Architecture of `checkpoint`."""
    mean: Triple | None = None
    std: Triple | None = None
    """The normalisation that the teacher was trained with, pixels / 255; unset: the data set's."""
    trained_on_held_out: bool = True
    """Whether the teacher's own training saw the held-out images, as public checkpoints have."""
    precision: PrecisionChoice = "auto"
    batch_size: Count = 512
    features: bool = True
    """Keep the penultimate features; `select` needs them for influence."""
    top_k: Annotated[int, Field(ge=0, le=4096)] = 0
    """Logits kept of each row, beside the label's and the log-sum-exp of all; 0: all of them."""
    temperatures: tuple[Positive, ...] = (1.0, 4.0)
    """Temperatures at which a top-k cache can be used: the log-sum-exp is kept at these."""
    shard_rows: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Rows of an object, what one kill may cost; unset: 16,384, or fewer that make 64 MiB."""
    compression: Literal["zstd", "none"] = "zstd"
    """Lossless; "none" is faster and a tenth larger."""
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _describes_its_checkpoint(self) -> Self:
        if self.checkpoint is not None and not self.arch:
            raise ValueError("arch must be set where checkpoint is")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be set together")
        if self.checkpoint is None:
            unused = dict.fromkeys(("arch", "mean", "std", "trained_on_held_out"), True)
            refuse_unused(self, unused, because="no checkpoint")
        refuse_unused(self, {"temperatures": self.top_k == 0}, because="top_k = 0")
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperatures must be one or more different numbers")
        return self


class TrainStudentConfig(OptimiserConfig):
    """betons + selection + soft labels -> run."""

    name: str = "student"
    distil: bool = True
    """False: plain training, with nothing to distil."""
    lambda_ce: NotNegative = 0.1
    """Weight of cross-entropy on distilled samples."""
    lambda_kd: NotNegative = 0.9
    """Weight of distillation on distilled samples."""
    selection: Path | None = None
    """A selection table; unset: the one that `select` makes of these settings."""
    soft_labels: Path | None = None
    """Its soft labels; unset: the ones beside the table."""
    augmentation: Literal["auto", "cached", "fresh"] = "auto"
    """Cached views, or a fresh one every epoch; auto: cached where soft labels are per view."""

    @model_validator(mode="after")
    def _has_no_distillation_without_effect(self) -> Self:
        names = ("lambda_ce", "lambda_kd", "selection", "soft_labels")
        refuse_unused(self, dict.fromkeys(names, not self.distil), because="distil = false")
        return self


class CompareConfig(Section):
    """The same student under several settings and seeds."""

    seeds: tuple[Seed, ...] = (0,)
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name of each row of the table -> its overrides, as for --set."""


class Config(Section):
    """The whole file."""

    workspace: Path = Path("work")
    """Folder under which everything is written."""
    caches: str = ""
    """Where teacher caches are made: a folder, s3://..., gs://... or az://...; empty: `caches`
    under the workspace."""
    share: str = ""
    """The team's caches: what lies there is fetched instead of running the teacher."""
    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    train_teacher: TrainTeacherConfig = Field(default_factory=TrainTeacherConfig)
    cache_teacher: CacheTeacherConfig = Field(default_factory=CacheTeacherConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    train_student: TrainStudentConfig = Field(default_factory=TrainStudentConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)

    @model_validator(mode="after")
    def _keeps_the_temperatures_that_it_uses(self) -> Self:
        """A top-k cache serves at the temperatures that it was made for only."""
        if self.cache_teacher.top_k == 0 or self.select.cache is not None:
            return self
        used = {1.0, self.select.revise_at or self.select.temperature}
        if self.select.strategy in INFLUENCE_STRATEGIES:
            used.add(self.select.influence.temperature)
        missing = sorted(used - set(self.cache_teacher.temperatures))
        if missing:
            told = ", ".join(f"{value:g}" for value in missing)
            raise ValueError(
                f"cache_teacher.temperatures must have {told} too: `select` uses it, and a top-k "
                "cache serves at the temperatures that it was made for only"
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
