"""Settings of `select`: label revision, influence scores, and the choice of samples."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from pipeline.methods.catalogue import Revision, Strategy
from stages.config.types import (
    Count,
    NameOrEmpty,
    OpenUnit,
    Place,
    Positive,
    PositiveShare,
    Section,
    Seed,
    Share,
    refuse_unused,
)

ScoreColumn: TypeAlias = Literal["dloss_undistill", "dloss_swap", "dloss_remove", "dloss_current"]
OWN_ERRORS = -2.0
"""Default of `standard_errors` for influence: a sample this far below 0 is dropped."""
INFLUENCE_STRATEGIES = ("influence", "class-balanced", "beta", "param-change", "label-issue-free")
"""Strategies that read influence scores."""


class InfluenceConfig(Section):
    """Settings of influence scores: how distilling a sample changes the loss on other samples."""

    l2: Positive | Literal["auto"] = "auto"
    """L2 weight of the linear head that is fitted for the scores, above 0.

    "auto" takes the largest weight whose loss on unused held-out samples is within a standard error
    of the smallest. It is raised further while EK-FAC's estimate of p_eff/N is above 0.25."""
    kd_weight: PositiveShare = 0.9
    """Weight of the teacher's label in the loss of a distilled sample, above 0 and at most 1.

    The sample's own label has the rest."""
    temperature: Positive = 1.0
    """Temperature of the teacher's labels when samples are scored, above 0."""
    labels: Literal["raw", "revised"] = "raw"
    """Teacher's labels that are scored.

    "raw" scores them as the teacher gives them, "revised" after label revision."""
    views: Literal["clean", "augmented"] = "clean"
    """Views of the scored samples.

    "augmented" averages over the cached augmented views, at the cost of one pass for each. The
    samples whose loss is predicted are always seen in the clean view."""
    target: Literal["auto", "held-out", "cross-fit", "external"] = "auto"
    """Samples whose loss is predicted.

    "held-out" takes the held-out samples. "cross-fit" takes each fold of the training samples in
    turn, with a head fitted to the other folds. "external" takes the samples of another cache.
    "auto" is "cross-fit" if the teacher was trained on the held-out samples, else "held-out"."""
    external: Place | None = None
    """Folder or address of another cache of the same teacher; required for `target = "external"`.

    It must not contain training or test images of this data set."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Number of folds, from 2 to 100, for cross-fitting, label issues and head repair.

    One head is fitted for each fold."""
    proxy: Place | None = None
    """Folder or address of a cache with another network's features of the same images.

    A briefly trained student is an example. Unset, the teacher's own features are used."""
    pca: Count | None = None
    """Number of principal components that features are reduced to, from 1.

    Unset, all features are used."""
    distilled: PositiveShare = 1.0
    """Degree of distillation, above 0 and at most 1, at which `dloss_undistill` is computed.

    The default assumes that every sample is distilled, which finds what the teacher's mistakes
    cost. The fraction of samples that you keep predicts the effect of large selections better."""
    rounds: Annotated[int, Field(ge=0, le=20)] = 0
    """Number of further rounds, from 0 to 20: fit the head to the last selection and score again.

    `score = "dloss_current"` needs at least one. The default does none."""
    standard_error_groups: Annotated[int, Field(ge=0, le=100)] = 10
    """Number of parts of the target that standard errors are computed from: 0, or 2 to 100.

    0 computes no standard errors."""
    hessian_subsample: Annotated[int, Field(ge=2)] | None = None
    """Number of training samples that the curvature is computed from, from 2.

    Use it to save time with very many samples; ranks get worse with fewer samples per class. Unset,
    all training samples are used."""
    solver: Literal["exact", "ekfac"] = "exact"
    """Solver of the scores' linear system.

    "exact" uses preconditioned conjugate gradients. "ekfac" is an approximation (EK-FAC) that is
    faster with many classes."""
    label_issues: bool = True
    """Find labels that are probably wrong, with `folds` more heads.

    False leaves the table's column `label_issue` empty."""
    diagnostics: bool = True
    """Check the scores: compute them at two other values of `l2`, and their gain to second order.

    It fits three more heads. False saves that time."""

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
    """Settings of `heartcut select`, which revises labels and selects samples to distil."""

    name: NameOrEmpty = ""
    """File name of the selection table, without its suffix.

    Up to 64 letters, digits, ".", "_" and "-", the first a letter or a digit. Empty, the table is
    named after its ID."""
    cache: Place | None = None
    """Folder or address of the teacher cache to use: a path, s3://..., gs://..., az://... or
    https://...

    Unset, it is the cache that `heartcut cache-teacher` wrote for this configuration."""
    accept_mismatch: tuple[Literal["labels", "pixels"], ...] = ()
    """Differences between the cache and the data set to accept: "labels", "pixels", or both.

    By default either difference is an error."""
    repair: Literal["none", "head"] = "none"
    """Repair of the teacher's classifier.

    "head" refits it to the cached features, cross-fitted, and uses its logits. "none" uses the
    teacher's own."""
    revision: Revision = "all"
    """Label revision: which soft labels are moved towards the true label.

    "all" revises every soft label, "wrong" those of samples that the teacher classifies wrongly,
    and "none" leaves them as they are. Two baselines treat wrong soft labels in other ways: "swap"
    exchanges the true label's probability with the largest one, and "drop-wrong" replaces the soft
    label by the true label."""
    eta: OpenUnit = 0.8
    """Strength of label revision, between 0 and 1: smaller values trust the teacher less.

    Where the teacher is right, its label has this weight and the true label the rest (`revision =
    "all"`). Where it is wrong, the true label gets at least 1 - eta more than any other class."""
    temperature: Positive = 4.0
    """Temperature of distillation, above 0.

    Higher values soften the soft labels and the student's outputs."""
    revise_at: Positive | None = None
    """Temperature of the teacher's probabilities when they are revised, above 0.

    Unset, it is `temperature`."""
    standardise: bool = False
    """Standardise the logits of each sample before the softmax, the student's too
    (arXiv:2403.01427).

    It needs a cache of all logits."""
    soft_views: Literal["augmented", "clean"] = "augmented"
    """Views that soft labels are computed for.

    "augmented" gives every cached augmented view its own soft label. "clean" uses the clean view's
    for every image that the student sees."""
    strategy: Strategy = "influence"
    """Strategy that selects the samples to distil.

    The default keeps samples by their influence scores, "all" keeps every sample and "none" keeps
    none. The selection page describes the others."""
    score: ScoreColumn = "dloss_undistill"
    """Column of the selection table that "influence" and "class-balanced" select by.

    The default is positive where distilling the sample lowers the predicted loss."""
    fraction: PositiveShare | None = None
    """Fraction of the training samples to distil, above 0 and at most 1.

    Unset, the strategy's own threshold decides. The strategies "random", "class-balanced", "beta"
    and "param-change" require it."""
    threshold: float | None = None
    """Threshold of the score, for the strategies "influence" and "el2n".

    "influence" keeps samples above it, "el2n" samples below it. Unset, it is 0 for "influence", and
    "el2n" needs a `fraction`."""
    standard_errors: float | None = None
    """Margin around the threshold of "influence", in standard errors of the score.

    Above 0, a sample is kept only if its score is that far above the threshold. Below 0, it is
    dropped only if its score is that far below. Unset, it is -2, so only clearly harmful samples
    are dropped; with a `threshold` or a `fraction`, or without standard errors, it is 0."""
    class_quota: Share = 0.5
    """Smallest kept fraction of a class, relative to the kept fraction of all samples (0 to 1).

    With the default, a class keeps at least half of its proportional share. 0 sets no minimum."""
    beta_mean: OpenUnit = 0.5
    """Percentile of self-influence, between 0 and 1, that the strategy "beta" draws around."""
    beta_concentration: Positive = 4.0
    """Concentration (a + b) of the distribution that the strategy "beta" draws from, above 0.

    Larger values draw closer to `beta_mean`."""
    seed: Seed = 0
    """Seed that breaks ties, and draws samples where the strategy is random."""
    influence: InfluenceConfig = Field(default_factory=InfluenceConfig)
    """Settings of influence scores."""

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> Self:
        if self.name.endswith(".scores"):
            raise ValueError("name must not end in .scores, the suffix of score files")
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
        """`standard_errors`, or its default for the other settings."""
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
        """Require a fraction or a threshold, and not both."""
        if self.fraction is not None and self.threshold is not None:
            raise ValueError("fraction and threshold exclude each other; remove one")
        if self.fraction is not None and self.standard_errors:
            raise ValueError("fraction and standard_errors exclude each other; remove one")
        needs = self.strategy in ("random", "class-balanced", "beta", "param-change")
        needs = needs or (self.strategy == "el2n" and self.threshold is None)
        if needs and self.fraction is None:
            raise ValueError(f"fraction must be set for strategy = {self.strategy!r}")
