"""What there is to distil with: every method, its paper, what it needs and its weights.

Loads without torch, so that a configuration and `heartcut methods` can read it.

The loss that the weights belong to (n_s of the B rows are distilled, s marks them):

    L = (1/B) sum_i [ (1 - s_i) CE_i + s_i (lambda_ce CE_i + lambda_kd T_i) ]
        + lambda_feature (n_s / B) F
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Revision: TypeAlias = Literal["none", "wrong", "all", "swap", "drop-wrong"]
"""The rows of soft labels that are moved towards the label, or a baseline's way to treat them."""
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
"""A way to choose the samples that are distilled."""
Kind = Literal["logits rows", "logits batch", "features"]
"""Distils soft labels row by row, or all of a batch's together; or penultimate features."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of distillation."""

    name: str
    """As `train_student.method` spells it."""
    title: str
    kind: Kind
    paper: str
    """Authors and year."""
    arxiv: str
    """Its id; "" where the paper is not there."""
    needs_features: bool
    """Whether it distils the penultimate features that a teacher cache keeps."""
    lambda_ce: float
    """Weight of cross-entropy on distilled samples."""
    lambda_kd: float
    """Weight of its term of the soft labels; for a method of features, of vanilla distillation."""
    lambda_feature: float
    """Weight of its term of the features."""
    description: str
    """What the student learns, one sentence."""
    settings: tuple[str, ...] = ()
    """Keys of its own table, [train_student.<name>]."""
    standardise: bool = False
    """Whether logit standardisation applies to it."""
    sparse: str = ""
    """Why the soft labels of a top-k cache do not serve it; "": they do."""
    sparse_temperature: float | None = None
    """The only temperature at which they do serve it, where there is a reason why not."""


def refusal(
    method: str,
    *,
    has_features: bool,
    is_sparse: bool,
    temperature: float,
    standardised: bool,
) -> str | None:
    """Why a method cannot be trained from a cache and its soft labels, in one line.

    Args:
        method: its name.
        has_features: whether the cache keeps penultimate features.
        is_sparse: whether the soft labels are of a top-k cache.
        temperature: at which they were taken.
        standardised: whether they are of standardised logits.

    Returns:
        The reason and what to do next; None: nothing is in the way.
    """
    chosen = METHODS[method]
    if chosen.needs_features and not has_features:
        return (
            f"{method} distils penultimate features, and the cache has none. Set "
            "`cache_teacher.features = true` and cache again, or choose a method of logits."
        )
    if standardised:
        return _refusal_of_standardised(chosen, is_sparse=is_sparse)
    if is_sparse and chosen.sparse and temperature != chosen.sparse_temperature:
        return _refusal_of_sparse(chosen, temperature)
    return None


def _refusal_of_standardised(chosen: Method, *, is_sparse: bool) -> str | None:
    if is_sparse:
        return (
            "standardisation takes the mean and deviation of all logits, and a top-k cache has "
            "not got them. Set `select.standardise = false` or `cache_teacher.top_k = 0`."
        )
    if not chosen.standardise:
        able = " and ".join(name for name, method in METHODS.items() if method.standardise)
        return (
            f"{chosen.name} cannot use soft labels of standardised logits ({able} can). Set "
            "`select.standardise = false`."
        )
    return None


def _refusal_of_sparse(chosen: Method, temperature: float) -> str:
    only = chosen.sparse_temperature
    remedy = "" if only is None else f"set `select.temperature = {only:g}` (now {temperature:g}), "
    able = ", ".join(
        name for name, method in METHODS.items() if not (method.sparse or method.needs_features)
    )
    return (
        f"{chosen.name} cannot use the soft labels of a top-k cache: {chosen.sparse}. To go on, "
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
        description="The label's probability, and apart from it how the other classes compare.",
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
        description="The label by the teacher's trust in it, and how the other classes compare.",
        settings=("gamma",),
        sparse="it also takes them at temperature 1, where the mass of other classes is unknown",
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
        sparse="it compares every class over the samples of a batch, also where it is not listed",
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
        description="Soft labels at several temperatures, how samples compare, how classes do.",
        settings=("temperatures",),
        sparse="it takes them at other temperatures, where the mass of other classes is unknown",
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
        # mdistiller and RepDistiller have 100, for a hint amid the network. On the last feature,
        # with rates like 0.1, the network then learns nothing else.
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
        description="How likely each sample is another one's neighbour.",
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
        description="Which samples of a batch are alike.",
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
        description="To tell a sample's teacher from the teacher of other samples.",
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
        description="The teacher's features, which the teacher's own classifier then reads.",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in (*_OF_LOGITS, *_OF_FEATURES)}
"""By name, methods of logits first."""
