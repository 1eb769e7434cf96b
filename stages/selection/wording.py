"""A selection in words: its rule, and warnings about its scores."""

from collections.abc import Iterator

import numpy as np

from pipeline.artefacts.scores import (
    CLEAR_ERRORS,
    TRUSTED_LEAK,
    TRUSTED_SHARE,
    Diagnostics,
)
from pipeline.artefacts.selection import SelectionIdentity, SelectionTable

TRUSTED_STABILITY = 0.9
DOUBTED_ERRORS = 2.0
TRUSTED_DOUBT = 0.5
"""Largest fraction of dropped samples that may be within `DOUBTED_ERRORS` of the threshold."""
LOW_HELPS = ("dloss_swap", "dloss_add")
"""Scores whose low values are in favour of distilling the sample."""

_STRATEGIES = {
    "influence": "samples that help according to {score}",
    "class-balanced": "the same fraction of every class, best {score} first",
    "beta": "a draw around the percentile {mean:g} of self-influence",
    "param-change": "samples whose soft labels move the head most",
    "label-issue-free": "samples without a label issue",
    "correct": "samples that the teacher gets right",
    "el2n": "samples with low EL2N",
    "random": "samples drawn by the seed",
    "all": "every sample",
    "none": "no sample",
}


def rule(identity: SelectionIdentity) -> str:
    """Describe the samples that the strategy keeps, with its numbers."""
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
            f"by at least {errors} more"
            if identity.standard_errors > 0
            else f"or less than {errors} below that"
        )
    return f"{identity.strategy}: " + ", ".join([words, *bounds])


def sign_of(score: str) -> float:
    """Sign of a score: 1 if high values are in favour of distilling the sample."""
    return -1.0 if score in LOW_HELPS else 1.0


def warnings_of_table(table: SelectionTable) -> Iterator[str]:
    """Warnings about the scores of a table, and about the choice by them."""
    if table.record.scores is not None:
        yield from warnings_of(table.record.scores.diagnostics)
    yield from threshold_warnings(table)


def threshold_warnings(table: SelectionTable) -> Iterator[str]:
    """Warn if many dropped samples have scores that do not differ clearly from the threshold."""
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
            f"{near:,} of the {len(short):,} dropped samples ({100 * near / len(short):.0f} %) are "
            f"within two standard errors of the threshold (expected at most "
            f"{100 * TRUSTED_DOUBT:.0f} %), so it is unknown if distilling them harms. Set "
            "`select.standard_errors = -2` to drop only clearly harmful samples, or "
            '`select.strategy = "all"`.'
        )


def guess_warning(found: Diagnostics) -> str:
    """Warn that the head which gives the scores knows no more than a guess."""
    assert found.gain_over_guess is not None, "callers check it"
    gain, error = found.gain_over_guess
    side = "lower" if gain > 0 else "higher"
    return (
        f"the head fitted for the scores is no better than a guess on unseen samples: its loss is "
        f"{abs(gain):.3f} nats {side}, with a standard error of {error:.3f} (expected lower by at "
        f"least {CLEAR_ERRORS:g} errors). So the scores are not used: without `select.fraction` "
        "every sample is distilled, with it samples are drawn at random. Use more samples of each "
        'class, fewer features with `select.influence.pca`, or set `select.strategy = "all"`.'
    )


def warnings_of(found: Diagnostics) -> Iterator[str]:
    """Warnings about scores that are not reliable, each with a remedy."""
    if found.is_guess:
        yield guess_warning(found)
    if found.effective_parameters > TRUSTED_SHARE:
        yield (
            f"p_eff/N is {found.effective_parameters:.2f} (expected at most {TRUSTED_SHARE}), so "
            "the scores may not rank samples like retraining would. Set a larger "
            "`select.influence.l2`, or use fewer features with `select.influence.pca`."
        )
    lowest = min(found.rank_stability.values(), default=1.0)
    if lowest < TRUSTED_STABILITY:
        yield (
            f"the order of the samples depends on l2: Spearman {lowest:.2f} with that at another "
            f"l2 (expected at least {TRUSTED_STABILITY}). Trust only the signs of large scores."
        )
    if found.leak is not None and found.has_leak:
        yield (
            f"the teacher is {100 * found.leak:.1f} points better on held-out samples than on test "
            f"images (expected at most {100 * TRUSTED_LEAK:.0f}): it may have been trained on "
            "them. Then their loss is lower than on new images."
        )
    elif found.target_in_sample:
        yield (
            "the teacher was trained on the images whose loss is predicted, so their loss is lower "
            "than on new images (target_in_sample in the selection table)."
        )
