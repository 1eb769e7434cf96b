"""Settings of every stage: frozen, typed, checked once, with their defaults. Imports no torch.

A configuration is one TOML file with a table per stage (`config.file` reads it). Unknown keys are
errors, and so are settings that would have no effect.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.origin import WithOrigin
from stages.config.prepare import PrepareConfig, ViewsConfig
from stages.config.select import INFLUENCE_STRATEGIES, SelectConfig
from stages.config.sweep import SweepConfig
from stages.config.training import TrainStudentConfig, TrainTeacherConfig
from stages.config.types import (
    NamedOverrides,
    Place,
    Section,
    Seeds,
    UserPath,
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
