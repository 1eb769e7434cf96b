"""Catalogue of the distillation methods: paper, requirements and weights of each.

It does not import torch, so a configuration and `heartcut methods` can read it quickly.

The loss that the weights belong to (n_s of the B rows are distilled, s marks them):

    L = (1/B) sum_i [ (1 - s_i) CE_i + s_i (lambda_ce CE_i + lambda_kd T_i) ]
        + lambda_feature (n_s / B) F
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Revision: TypeAlias = Literal["none", "wrong", "all", "swap", "drop-wrong"]
"""Rows of soft labels that are moved towards the label, or the name of a baseline."""
Strategy: TypeAlias = Literal[
    "influence",
    "class-balanced",
    "beta",
    "param-change",
    "label-issue-free",
    "correct",
    "el2n",
    "random",
    "all",
    "none",
]
"""Strategies that choose the samples to distil."""
Kind = Literal["logits rows", "logits batch", "features"]
"""Inputs of a method: soft labels row by row or by batch, or penultimate features."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A distillation method."""

    name: str
    """Value of `train_student.method`."""
    title: str
    kind: Kind
    paper: str
    """Authors and year."""
    arxiv: str
    """arXiv id of the paper; "" if it has none."""
    needs_features: bool
    """True if it distils the penultimate features of a teacher cache."""
    lambda_ce: float
    """Weight of cross-entropy on distilled samples."""
    lambda_kd: float
    """Weight of its soft-label term; for a method of features, weight of vanilla distillation."""
    lambda_feature: float
    """Weight of its feature term."""
    description: str
    """The knowledge that the student learns, in one sentence."""
    settings: tuple[str, ...] = ()
    """Keys of the table [train_student.<name>]."""
    standardise: bool = False
    """True if logit standardisation applies to it."""
    sparse: str = ""
    """Reason why it cannot use the soft labels of a top-k cache; "" if it can."""
    sparse_temperature: float | None = None
    """The only temperature at which it can use them although ``sparse`` has a reason."""


def refusal(
    method: str,
    *,
    has_features: bool,
    is_sparse: bool,
    temperature: float,
    standardised: bool,
) -> str | None:
    """Check if a method can be trained from a cache and its soft labels.

    Args:
        method: name of the method.
        has_features: True if the cache keeps penultimate features.
        is_sparse: True if the soft labels are of a top-k cache.
        temperature: temperature of the soft labels.
        standardised: True if they are of standardised logits.

    Returns:
        One line with the reason why not and the next step; None if it can be trained.
    """
    chosen = METHODS[method]
    if chosen.needs_features and not has_features:
        return (
            f"{method} distils penultimate features, and the cache has none. Set "
            "`cache_teacher.features = true` and run `heartcut cache-teacher` again, or choose a "
            "method of logits."
        )
    if standardised:
        return _against_standardised(chosen, is_sparse=is_sparse)
    if is_sparse and chosen.sparse and temperature != chosen.sparse_temperature:
        return _against_sparse(chosen, temperature)
    return None


def _against_standardised(chosen: Method, *, is_sparse: bool) -> str | None:
    if is_sparse:
        return (
            "standardisation needs the mean and deviation of all logits, which a top-k cache does "
            "not have. Set `select.standardise = false` or `cache_teacher.top_k = 0`."
        )
    if not chosen.standardise:
        able = " and ".join(name for name, method in METHODS.items() if method.standardise)
        return (
            f"{chosen.name} cannot use soft labels of standardised logits ({able} can). Set "
            "`select.standardise = false`."
        )
    return None


def _against_sparse(chosen: Method, temperature: float) -> str:
    only = chosen.sparse_temperature
    remedy = "" if only is None else f"set `select.temperature = {only:g}` (now {temperature:g}), "
    able = ", ".join(
        name for name, method in METHODS.items() if not (method.sparse or method.needs_features)
    )
    return (
        f"{chosen.name} cannot use the soft labels of a top-k cache: {chosen.sparse}. To continue, "
        f"{remedy}set `cache_teacher.top_k = 0`, or choose {able} or a method of features."
    )


_OF_LOGITS = (
    Method(
        name="kd",
        title="Knowledge distillation",
        kind="logits rows",
        paper="Hinton et al. 2015",
        arxiv="1503.02531",
        needs_features=False,
        standardise=True,
        lambda_ce=0.1,  # mdistiller and RepDistiller, CIFAR-100 at temperature 4
        lambda_kd=0.9,
        lambda_feature=0.0,
        description="The soft label of every sample.",
    ),
    Method(
        name="dkd",
        title="Decoupled knowledge distillation",
        kind="logits rows",
        paper="Zhao et al. 2022",
        arxiv="2203.08679",
        needs_features=False,
        standardise=True,
        lambda_ce=1.0,  # the paper; its alpha and beta weigh the parts
        lambda_kd=1.0,
        lambda_feature=0.0,
        description="The label's probability, and apart from it the relations of other classes.",
        settings=("alpha", "beta", "warmup_epochs"),
    ),
    Method(
        name="nkd",
        title="Normalised knowledge distillation",
        kind="logits rows",
        paper="Yang et al. 2023",
        arxiv="2303.13005",
        needs_features=False,
        lambda_ce=1.0,  # the paper and its code; gamma weighs the other classes
        lambda_kd=1.0,
        lambda_feature=0.0,
        description="The label by the teacher's confidence, and the relations of other classes.",
        settings=("gamma",),
        sparse="it also needs them at temperature 1, where the mass of other classes is unknown",
        sparse_temperature=1.0,
    ),
    Method(
        name="dist",
        title="Distillation from a stronger teacher",
        kind="logits batch",
        paper="Huang et al. 2022",
        arxiv="2205.10536",
        needs_features=False,
        lambda_ce=1.0,  # the paper, whose beta = gamma = 2 are its code's 2 times 1
        lambda_kd=2.0,
        lambda_feature=0.0,
        description="Correlations over the classes of a sample and over the samples of a class.",
        settings=("beta", "gamma"),
        sparse="it compares each class over all samples of a batch, also those without an entry",
    ),
    Method(
        name="mlkd",
        title="Multi-level logit distillation",
        kind="logits batch",
        paper="Jin et al. 2023",
        arxiv="",  # CVPR 2023, pages 24276 to 24285
        needs_features=False,
        lambda_ce=0.1,  # the published code, CIFAR-100
        lambda_kd=0.9,
        lambda_feature=0.0,
        description="Soft labels at several temperatures, and relations of samples and of classes.",
        settings=("temperatures",),
        sparse="it needs them at other temperatures, where the mass of other classes is unknown",
    ),
)

_OF_FEATURES = (
    Method(
        name="fitnet",
        title="FitNets, a hint on the last feature",
        kind="features",
        paper="Romero et al. 2015",
        arxiv="1412.6550",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        # mdistiller and RepDistiller have 100, for a hint in the middle of the network. On the
        # last feature and at rates near 0.1, that weight keeps the network from learning more.
        lambda_feature=1.0,
        description="The teacher's features, through a trained linear map.",
    ),
    Method(
        name="rkd",
        title="Relational knowledge distillation",
        kind="features",
        paper="Park et al. 2019",
        arxiv="1904.05068",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        lambda_feature=1.0,  # mdistiller and RepDistiller; distance 25 and angle 50 are within
        description="Distances between pairs of samples and angles within triplets.",
        settings=("distance", "angle"),
    ),
    Method(
        name="pkt",
        title="Probabilistic knowledge transfer",
        kind="features",
        paper="Passalis and Tefas 2018",
        arxiv="1803.10837",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        lambda_feature=30_000.0,  # mdistiller and RepDistiller
        description="The probability that two samples are neighbours.",
    ),
    Method(
        name="sp",
        title="Similarity-preserving distillation",
        kind="features",
        paper="Tung and Mori 2019",
        arxiv="1907.09682",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        lambda_feature=3000.0,  # mdistiller and RepDistiller, as the paper
        description="The similarities between the samples of a batch.",
    ),
    Method(
        name="cc",
        title="Correlation congruence",
        kind="features",
        paper="Peng et al. 2019",
        arxiv="1904.01802",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        # AberHu/Knowledge-Distillation-Zoo, for this kernel with gamma 0.4. RepDistiller's 0.02
        # belongs to another formula.
        lambda_feature=100.0,
        description="A Gaussian kernel between the samples of a batch, expanded to second order.",
        settings=("gamma",),
    ),
    Method(
        name="crd",
        title="Contrastive representation distillation",
        kind="features",
        paper="Tian et al. 2020",
        arxiv="1910.10699",
        needs_features=True,
        lambda_ce=1.0,
        lambda_kd=0.0,
        lambda_feature=0.8,  # RepDistiller, which is the paper's code
        description="A match of each sample's features with its own teacher features only.",
        settings=("dim", "negatives", "temperature", "momentum"),
    ),
    Method(
        name="simkd",
        title="Reused teacher classifier",
        kind="features",
        paper="Chen et al. 2022",
        arxiv="2203.14001",
        needs_features=True,
        lambda_ce=0.0,  # the paper and its code: features alone; the teacher's head classifies
        lambda_kd=0.0,
        lambda_feature=1.0,
        description="The teacher's features, as input of the teacher's own classifier.",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in (*_OF_LOGITS, *_OF_FEATURES)}
"""All methods by name, methods of logits first."""
