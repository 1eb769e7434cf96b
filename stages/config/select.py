"""The knobs of `select`: how labels are revised, samples scored, and some of them chosen."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from pipeline.methods.catalogue import Revision, Strategy
from stages.config.types import (
    Count,
    OpenUnit,
    Positive,
    PositiveShare,
    Section,
    Seed,
    Share,
    refuse_unused,
)

ScoreColumn: TypeAlias = Literal["dloss_undistill", "dloss_swap", "dloss_remove", "dloss_current"]
OWN_ERRORS = -2.0
"""Standard errors below 0 beyond which influence leaves a row out on its own."""
INFLUENCE_STRATEGIES = ("influence", "class-balanced", "beta", "param-change", "label-issue-free")
"""Strategies that read the scores of the refitted head."""


class InfluenceConfig(Section):
    """How a sample's influence on the held-out loss is predicted."""

    l2: Positive | Literal["auto"] = "auto"
    """Weight of the L2 term of the refitted head; auto: the largest whose loss on held-out images
    that the scores do not use is within a standard error of the least; more where p_eff / N is
    above 0.25."""
    kd_weight: PositiveShare = 0.9
    """Weight of the teacher's label in the supervision of a distilled sample."""
    temperature: Positive = 1.0
    labels: Literal["raw", "revised"] = "raw"
    """The teacher's labels as they are, or after the revision of `select`."""
    views: Literal["clean", "augmented"] = "clean"
    """Views of the scored samples; the target is always seen in the clean view."""
    target: Literal["auto", "held-out", "cross-fit", "external"] = "auto"
    """Whose loss is predicted: the held-out rows; every fold of the training rows in turn, by a
    head of the others; or the samples of another cache. auto: held-out rows, or cross-fit where the
    teacher was trained on them as well."""
    external: str | None = None
    """Another cache of the same teacher, for target = "external"."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Of target = "cross-fit", of label issues and of the repaired head."""
    proxy: str | None = None
    """A cache of another network's features of the same images, for example of a student that was
    trained shortly; unset: the teacher's."""
    pca: Count | None = None
    """Features are reduced to this many principal components; unset: all are used."""
    distilled: PositiveShare = 1.0
    """How far every row is distilled at the head where `dloss_undistill` is read: 1 finds what the
    teacher's mistakes cost; about the share that is kept predicts what large sets do."""
    rounds: Annotated[int, Field(ge=0, le=20)] = 0
    """Times that the head is fitted again at what was just selected, and the rows scored there."""
    standard_error_groups: Annotated[int, Field(ge=0, le=100)] = 10
    """Parts of the target whose scores are compared for standard errors; 0: none are computed."""
    hessian_subsample: Annotated[int, Field(ge=2)] | None = None
    """Rows that the curvature is taken of, for very many rows; unset: all. The fewer there are for
    each class, the less the ranks are worth."""
    solver: Literal["exact", "ekfac"] = "exact"
    label_issues: bool = True
    """Find labels that are probably wrong, by `folds` more heads."""
    diagnostics: bool = True
    """Score again at other l2 and predict the gain to second order, by three more heads."""

    @model_validator(mode="after")
    def _has_what_its_target_needs(self) -> Self:
        if self.target == "external" and not self.external:
            raise ValueError("external must be set for target = 'external'")
        unused = {"external": self.target != "external"}
        refuse_unused(self, unused, because=f"target = {self.target!r}")
        if self.standard_error_groups == 1:
            raise ValueError("standard_error_groups must be 0 or at least 2")
        return self


class SelectConfig(Section):
    """teacher cache -> selection table + soft labels."""

    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")] = ""
    """Of the selection table, beside others of the same cache; empty: its id."""
    cache: str | None = None
    """A teacher cache: a folder, s3://..., gs://..., az://... or https://...; unset: the one that
    `cache-teacher` made or confirmed last here."""
    accept_mismatch: tuple[Literal["labels", "pixels"], ...] = ()
    """Differences between the cache and the data set that are not refused."""
    repair: Literal["none", "head"] = "none"
    """head: the teacher's classifier is refitted on the cached features and its logits are used."""
    revision: Revision = "all"
    """Which rows of soft labels are moved towards the label: "all", or those that the teacher gets
    "wrong"; "none": the teacher's own are used. Two baselines treat wrong rows in other ways:
    "swap" exchanges the label's probability with the largest, "drop-wrong" takes the label."""
    eta: OpenUnit = 0.8
    """A right row keeps this share of the teacher (of "all"); in a wrong one the label leads every
    other class by 1 - eta at least."""
    temperature: Positive = 4.0
    """The temperature of distillation."""
    revise_at: Positive | None = None
    """Temperature at which the teacher's probabilities are taken; unset: `temperature`."""
    standardise: bool = False
    """Standardise every row of logits before the softmax, the student's too (arXiv:2403.01427)."""
    soft_views: Literal["augmented", "clean"] = "augmented"
    """Soft labels of the augmented views, or of the clean one whatever the student sees."""
    strategy: Strategy = "influence"
    """Which rows are distilled; docs/selection.md tells how each one chooses."""
    score: ScoreColumn = "dloss_undistill"
    """Column that `influence` and `class-balanced` read."""
    fraction: PositiveShare | None = None
    """Share of the rows to distil; unset: the strategy's own threshold."""
    threshold: float | None = None
    """Bound of the score; unset: 0 for influence, none for others."""
    standard_errors: float | None = None
    """Standard errors by which a score has to be above its threshold; negative: by which it may be
    below. Unset: -2 for influence by its own threshold, which leaves out only what harms beyond
    doubt; 0 beside a `threshold` or `fraction`, or where there are no errors."""
    class_quota: Share = 0.5
    """Every class keeps at least this share of the overall kept share."""
    beta_mean: OpenUnit = 0.5
    """Percentile of self-influence around which `beta` draws."""
    beta_concentration: Positive = 4.0
    """How closely: a + b of the Beta distribution."""
    seed: Seed = 0
    """Breaks ties, and draws where the strategy is random."""
    influence: InfluenceConfig = Field(default_factory=InfluenceConfig)

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> Self:
        if self.name.endswith(".scores"):
            raise ValueError("name must not end in .scores, which is how score files are called")
        return self

    @model_validator(mode="after")
    def _has_no_setting_without_effect(self) -> Self:
        ranked = self.strategy not in ("all", "none")
        by_influence = self.strategy in ("influence", "class-balanced")
        unused = {
            "eta": self.revision not in ("wrong", "all"),
            "fraction": not ranked,
            "threshold": self.strategy not in ("influence", "el2n"),
            "score": not by_influence,
            "standard_errors": self.strategy != "influence",
            "class_quota": not ranked or self.strategy == "class-balanced",
            "beta_mean": self.strategy != "beta",
            "beta_concentration": self.strategy != "beta",
            "influence": self.strategy not in INFLUENCE_STRATEGIES and self.repair == "none",
        }
        because = f"revision = {self.revision!r}, strategy = {self.strategy!r}"
        refuse_unused(self, unused, because=because)
        self._require_one_bound()
        self._require_what_the_strategy_reads()
        return self

    @property
    def num_errors(self) -> float:
        """`standard_errors`, or what is taken where it is unset."""
        if self.standard_errors is not None:
            return self.standard_errors
        has_errors = self.influence.standard_error_groups > 0 and self.score != "dloss_current"
        by_own_threshold = (
            self.strategy == "influence" and self.fraction is None and self.threshold is None
        )
        return OWN_ERRORS if by_own_threshold and has_errors else 0.0

    def _require_what_the_strategy_reads(self) -> None:
        influence = self.influence
        if self.score == "dloss_current" and influence.rounds == 0:
            raise ValueError("influence.rounds must be at least 1 for score = 'dloss_current'")
        if self.strategy == "label-issue-free" and not influence.label_issues:
            raise ValueError("influence.label_issues must be true for strategy 'label-issue-free'")
        if self.standard_errors and influence.standard_error_groups == 0:
            raise ValueError("standard_errors needs influence.standard_error_groups of at least 2")
        if self.standard_errors and self.score == "dloss_current":
            raise ValueError("score 'dloss_current' has no standard_errors; remove one of them")

    def _require_one_bound(self) -> None:
        """A fraction or a threshold, and not both."""
        if self.fraction is not None and self.threshold is not None:
            raise ValueError("fraction and threshold exclude each other; remove one")
        if self.fraction is not None and self.standard_errors:
            raise ValueError("fraction and standard_errors exclude each other; remove one")
        needs = self.strategy in ("random", "class-balanced", "beta", "param-change")
        needs = needs or (self.strategy == "el2n" and self.threshold is None)
        if needs and self.fraction is None:
            raise ValueError(f"fraction must be set for strategy = {self.strategy!r}")
