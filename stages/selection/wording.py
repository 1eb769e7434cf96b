"""What the record of a selection says, in words: its rule, and what speaks against its scores."""

from collections.abc import Iterator

import numpy as np

from pipeline.artefacts.scores import TRUSTED_SHARE, Diagnostics
from pipeline.artefacts.selection import SelectionIdentity, SelectionTable

TRUSTED_STABILITY = 0.9
TRUSTED_LEAK = 0.05
DOUBTED_ERRORS = 2.0
TRUSTED_DOUBT = 0.5
"""Share of the rows left out that may be within so many standard errors of the threshold."""
LOW_HELPS = ("dloss_swap", "dloss_add")
"""Scores whose low values say: distil it."""

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
        errors = f"{abs(identity.standard_errors):g} standard errors"
        bounds.append(
            f"with {errors} to spare"
            if identity.standard_errors > 0
            else f"or less than {errors} below that"
        )
    return f"{identity.strategy}: " + ", ".join([words, *bounds])


def sign_of(score: str) -> float:
    """1 where a high score says: distil it."""
    return -1.0 if score in LOW_HELPS else 1.0


def warnings_of_table(table: SelectionTable) -> Iterator[str]:
    """What should make a reader doubt the scores of a table, or what was chosen by them."""
    if table.record.scores is not None:
        yield from warnings_of(table.record.scores.diagnostics)
    yield from threshold_warnings(table)


def threshold_warnings(table: SelectionTable) -> Iterator[str]:
    """Whether rows are left out whose scores cannot be told from the threshold."""
    identity, frame = table.record.identity, table.frame
    errors_of = f"{identity.score}_se"
    if identity.strategy != "influence" or identity.fraction is not None or errors_of not in frame:
        return
    assert identity.score is not None, "influence reads a score"
    left_out = ((frame["rank"] >= 0) & ~frame["selected"]).to_numpy(dtype=bool)
    scores = sign_of(identity.score) * frame[identity.score].to_numpy(np.float64, na_value=np.nan)
    errors = frame[errors_of].to_numpy(np.float64, na_value=np.nan)
    short = (identity.threshold or 0.0) - scores[left_out]
    near = int((short < DOUBTED_ERRORS * errors[left_out]).sum())
    if near > TRUSTED_DOUBT * len(short):
        yield (
            f"{near:,} of the {len(short):,} rows left out ({100 * near / len(short):.0f} %) are "
            f"within two standard errors of the threshold (expected at most "
            f"{100 * TRUSTED_DOUBT:.0f} %): whether it harms to distil them is not known. Set "
            "`select.standard_errors = -2` to leave out only what harms by more than that, or "
            '`select.strategy = "all"`.'
        )


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
