"""Every knob of every stage: frozen, typed, checked once, defaults here only. Imports no torch.

A configuration is one TOML file with a table per stage (`config.file` reads it). Unknown keys are
refused; a setting that would have no effect is refused too.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.config.select import INFLUENCE_STRATEGIES, SelectConfig
from stages.config.sweep import SweepConfig
from stages.config.training import TrainStudentConfig, TrainTeacherConfig
from stages.config.types import (
    ClassOfTeacher,
    Count,
    NamedOverrides,
    OpenUnit,
    Positive,
    PositiveShare,
    PrecisionChoice,
    Section,
    Seed,
    Seeds,
    Triple,
    refuse_unused,
)


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
    max_side: Annotated[int, Field(ge=4, le=8192)] | None = None
    """Longest side in pixels; larger images are shrunk to it, and others left as they are."""
    store: Literal["raw", "jpeg", "mixed"] = "raw"
    """Pixels, fast to read; JPEGs, a tenth of the bytes; or JPEGs of images above `raw_pixels`."""
    raw_pixels: Count = 16_384
    """Most pixels of an image that store = "mixed" keeps as pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of JPEGs that are made; files that are JPEGs already and need no change are kept."""
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
            "skip_corrupt": self.source != "folder",
            "train": self.source != "folder",
            "test": self.source != "folder",
            "test_fraction": not (
                self.source == "digits" or (self.source == "folder" and not self.test)
            ),
        }
        unused["max_side"] = self.source != "folder"
        refuse_unused(self, unused, because=f"source = {self.source!r}")
        refuse_unused(self, {"max_side": self.resize is not None}, because="resize")
        unused = {"raw_pixels": self.store != "mixed", "quality": self.store == "raw"}
        refuse_unused(self, unused, because=f"store = {self.store!r}")
        return self


class ViewsConfig(Section):
    """Augmentation that both stages replay, with flips: crops of the zero-padded image, or random
    resized crops."""

    kind: Literal["crop-flip", "rrc-flip"] = "crop-flip"
    """Crops of the zero-padded image, for small images of one size; or random resized crops, for
    images of any sizes."""
    padding: Annotated[int, Field(ge=0, le=64)] = 4
    """Zero pixels on each side before the crop; of crop-flip, as the next five are of rrc-flip."""
    size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels that crops are resized to."""
    scale: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a crop has."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height."""
    centre: PositiveShare = 0.875
    """Share of the shorter side that the clean view shows, as a central square."""
    flip: bool = True
    count: Annotated[int, Field(ge=0, le=65_535)] | Literal["all"] = 4
    """Views beside the clean one: 0 none, n by seed, "all" every crop and flip once."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        if self.kind == "crop-flip":
            unused = dict.fromkeys(("size", "scale", "ratio", "centre"), True)
            refuse_unused(self, unused, because='kind = "crop-flip"')
            return self
        refuse_unused(self, {"padding": True}, because='kind = "rrc-flip"')
        if self.size is None:
            raise ValueError('size must be set for kind = "rrc-flip"')
        if self.count == "all":
            raise ValueError(
                'count must be a number for kind = "rrc-flip", which has no end of crops'
            )
        for name in ("scale", "ratio"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(
                    f"{name} must be the smaller number first, got {[smallest, largest]}"
                )
        return self

    @model_validator(mode="after")
    def _views_differ_from_the_clean_image(self) -> Self:
        if self.kind == "rrc-flip":
            return self
        if self.count != 0 and self.padding == 0 and not self.flip:
            raise ValueError("count must be 0 where padding is 0 and flip is false")
        return self


class CacheTeacherConfig(Section):
    """betons + teacher -> teacher cache."""

    checkpoint: Path | None = None
    """Weights of the teacher; unset: the run of `train-teacher` with this configuration."""
    arch: str = ""
    """Architecture of `checkpoint`: of the zoo, torchvision:NAME, timm:NAME, or
    package.module:callable."""
    head: str = ""
    """Name of the classifier within a network of torchvision, timm or your own; empty: found."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes that the checkpoint's head knows; unset: as `class_names`, or as the data set."""
    class_names: Path | None = None
    """Text file of the head's classes, one name a line in the order of its rows: the data set's are
    found among them, and the others left out."""
    class_map: dict[str, ClassOfTeacher] = Field(default_factory=dict)
    """Class of the data set -> row of the head from 0, or one of `class_names`, where names do not
    tell."""
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
        if self.class_map and self.class_names is None:
            if self.num_classes is None:
                raise ValueError("num_classes or class_names must be set where class_map is")
            if any(isinstance(row, str) for row in self.class_map.values()):
                raise ValueError("class_names must be set where class_map tells classes by name")
        if self.checkpoint is None:
            unused = dict.fromkeys(_OF_A_CHECKPOINT, True)
            refuse_unused(self, unused, because="no checkpoint")
        refuse_unused(self, {"temperatures": self.top_k == 0}, because="top_k = 0")
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperatures must be one or more different numbers")
        return self


_OF_A_CHECKPOINT = (
    *("arch", "head", "num_classes", "class_names", "class_map"),
    *("mean", "std", "trained_on_held_out"),
)


class CompareConfig(Section):
    """The same student under several settings and seeds."""

    seeds: Seeds = (0,)
    variants: NamedOverrides = Field(default_factory=dict)
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
    sweep: SweepConfig = Field(default_factory=SweepConfig)

    @model_validator(mode="after")
    def _keeps_the_temperatures_that_it_uses(self) -> Self:
        """A top-k cache serves at the temperatures that it was made for only."""
        if self.cache_teacher.top_k == 0 or self.select.cache is not None:
            return self
        used = {1.0, self.select.revise_at or self.select.temperature}
        if self.select.strategy in INFLUENCE_STRATEGIES:
            used.add(self.select.influence.temperature)
        if self.select.standardise and self.select.repair == "none":
            raise ValueError(
                "select.standardise must be false where cache_teacher.top_k is above 0: the mean "
                "and deviation of all logits are not kept"
            )
        missing = sorted(used - set(self.cache_teacher.temperatures))
        if missing:
            told = ", ".join(f"{value:g}" for value in missing)
            raise ValueError(
                f"cache_teacher.temperatures must have {told} too: `select` uses it, and a top-k "
                "cache serves at the temperatures that it was made for only"
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
