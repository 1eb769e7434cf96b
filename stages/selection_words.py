"""What the record of a selection says, in words: its rule, and what speaks against its scores."""

from collections.abc import Iterator

from pipeline.artefacts.scores import TRUSTED_SHARE, Diagnostics
from pipeline.artefacts.selection import SelectionIdentity

TRUSTED_STABILITY = 0.9
TRUSTED_LEAK = 0.05

_STRATEGIES = {
    "influence": "the rows that help, says {score}",
    "class-balanced": "the same share of every class, what {score} says helps most first",
    "beta": "a draw around the percentile {mean:g} of self-influence",
    "param-change": "the rows whose soft labels move the head most",
    "label-issue-free": "the rows without a label issue",
    "correct": "the rows that the teacher gets right",
    "el2n": "the rows of low EL2N",
    "random": "rows drawn by the seed",
    "all": "every row",
    "none": "no row",
}


def rule(identity: SelectionIdentity) -> str:
    """What the strategy keeps, with its numbers."""
    mean = 0.0 if identity.beta is None else identity.beta[0]
    words = _STRATEGIES.get(identity.strategy, "").format(score=identity.score, mean=mean)
    bounds = []
    if identity.fraction is not None:
        bounds.append(f"the first {100 * identity.fraction:g} % of the candidates")
    elif identity.strategy == "influence":
        bounds.append(f"by more than {identity.threshold or 0:g}")
    elif identity.threshold is not None:
        bounds.append(f"below {identity.threshold:g}")
    if identity.standard_errors:
        bounds.append(f"with {identity.standard_errors:g} standard errors to spare")
    return f"{identity.strategy}: " + ", ".join([words, *bounds])


def warnings_of(found: Diagnostics) -> Iterator[str]:
    """What should make a reader doubt the scores, with what to do about it."""
    if found.effective_parameters > TRUSTED_SHARE:
        yield (
            f"p_eff/N is {found.effective_parameters:.2f} (expected at most "
            f"{TRUSTED_SHARE}): first-order scores do not rank like retraining. Set "
            "a larger `select.influence.l2`, or fewer features by `select.influence.pca`."
        )
    lowest = min(found.rank_stability.values(), default=1.0)
    if lowest < TRUSTED_STABILITY:
        yield (
            f"the order of the samples depends on l2: Spearman {lowest:.2f} to that of another l2 "
            f"(expected at least {TRUSTED_STABILITY}). Trust the sign of large scores only."
        )
    if found.leak is not None and found.leak > TRUSTED_LEAK:
        yield (
            f"the teacher is {100 * found.leak:.1f} points better on held-out rows than on test "
            f"images (expected at most {100 * TRUSTED_LEAK:.0f}): it has seen them, so their loss "
            "looks lower than on new images."
        )
    elif found.target_in_sample:
        yield (
            "the teacher's training saw the images whose loss is predicted, so it looks lower than "
            "on new images; the table says target_in_sample."
        )
