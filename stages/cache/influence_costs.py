"""Work of influence scores, counted in Hessian products over all scored samples.

`influence.scoring` fits a path of heads to choose l2, two heads for each target, heads without each
fold for label issues, and two for diagnostics. A fit needs more products at a smaller l2; the
numbers here are between those of confident and of uncertain teachers.
"""

from typing import Final

from pipeline.influence.cross_fit import l2_grid
from pipeline.influence.scoring import STABILITY_FACTORS
from pipeline.methods.head.effective_parameters import PROBES
from stages.config.root import Config
from stages.config.select import INFLUENCE_STRATEGIES

PRODUCTS_OF_A_FIT: Final = 60
"""About 30 products, and 10 passes for losses and gradients that take as long as 3 each."""
PRODUCTS_OF_A_SOLVE: Final = 30
PRODUCTS_OF_AN_ERROR: Final = 7
"""For each group of a standard error, and for each probe of p_eff: solved to two digits."""


def influence_products(config: Config, num_rows: int, num_classes: int, num_features: int) -> int:
    """Hessian products of the influence of a configuration; 0 if its strategy reads no scores.

    Args:
        config: the configuration.
        num_rows: samples of the cache.
        num_classes: C.
        num_features: D.
    """
    settings = config.select.influence
    if config.select.strategy not in INFLUENCE_STRATEGIES:
        return 0
    grid = l2_grid(num_rows, num_classes=num_classes, num_features=num_features)
    path = len(grid) + 1 if settings.l2 == "auto" else 0
    targets = settings.folds if _is_cross_fit(config) else 1
    share = (settings.folds - 1) / settings.folds  # of the samples, where a fold is left out
    solves = PRODUCTS_OF_A_SOLVE + PRODUCTS_OF_AN_ERROR * (settings.standard_error_groups + PROBES)
    heads = targets * (2 + settings.rounds) * (PRODUCTS_OF_A_FIT + solves)
    if targets > 1:
        heads = round(heads * share)
    issues = settings.label_issues * round((settings.folds * share + 1) * PRODUCTS_OF_A_FIT)
    checks = settings.diagnostics * len(STABILITY_FACTORS)
    return (
        path * PRODUCTS_OF_A_FIT
        + heads
        + issues
        + checks * (PRODUCTS_OF_A_FIT // 2 + PRODUCTS_OF_A_SOLVE)
    )


def _is_cross_fit(config: Config) -> bool:
    """True if the target is cut along folds; "auto" does so if the teacher saw them all."""
    target = config.select.influence.target
    if target != "auto":
        return target == "cross-fit"
    settings = config.cache_teacher
    return settings.checkpoint is not None and settings.trained_on_held_out
