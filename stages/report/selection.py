"""The selection in two steps: what the score of a sample estimates, and what was decided by it."""

from collections.abc import Iterator, Sequence
from typing import Final

from pipeline.artefacts.scores import TRUSTED_SHARE, Diagnostics
from pipeline.artefacts.selection import SelectionIdentity, SelectionRecord, SelectionTable
from stages.report.charts import influence_chart
from stages.report.page import Folded, ReportSection
from stages.report.samples import SCORE
from stages.selection.wording import rule, sign_of, warnings_of_table
from stages.text import counted, percent

_ESTIMATES: Final = {
    "dloss_undistill": "if the sample lost its soft label while all others kept theirs. Above "
    "zero, the soft label helps",
    "dloss_swap": "if the sample alone got a soft label in place of its true one. Below zero, the "
    "soft label helps",
    "dloss_add": "if the distillation term were added for the sample alone. Below zero, the soft "
    "label helps",
    "dloss_remove": "if the sample were left out of training. Above zero, the sample helps",
    "dloss_current": "if the sample lost its soft label while the last round's selection kept "
    "theirs. Above zero, the soft label helps",
}
"""Meaning of each score, after: the change of the loss."""


def selection_section(table: SelectionTable, students: Sequence[str]) -> ReportSection:
    """Estimate, decision, and the reasons to doubt them."""
    record = table.record
    chart = influence_chart(table)
    folded: tuple[Folded, ...] = ()
    if record.scores is not None:
        facts = tuple(_diagnostics(record, record.scores.diagnostics))
        folded = (Folded(title="How far to trust the scores", facts=facts),)
    return ReportSection(
        title="Selection",
        intro=f"The selection of {', '.join(students)}." if students else "",
        points=_points(record),
        warnings=tuple(warnings_of_table(table)),
        charts=() if chart is None else (chart,),
        folded=folded,
    )


def _points(record: SelectionRecord) -> tuple[tuple[str, str], ...]:
    if record.identity.strategy == "all" and record.scores is None:
        return (("Decision.", _decision(record)),)
    return (("Estimate.", _estimate(record)), ("Decision.", _decision(record)))


def _estimate(record: SelectionRecord) -> str:
    if record.scores is None:
        return "No influence scores were computed: this strategy does not read any."
    found = record.scores.diagnostics
    score = record.identity.score or SCORE
    meaning = _ESTIMATES.get(score, _ESTIMATES[SCORE])
    return (
        f"The score of a sample, {score}, estimates the change of a loss {meaning}. The loss is "
        f"that of {counted(found.num_target, 'sample')} ({found.target}). The estimate is a "
        "first-order one, made with the teacher's last layer: it ranks samples, and a single score "
        "is uncertain."
    )


def _decision(record: SelectionRecord) -> str:
    kept, candidates = record.num_selected, record.num_candidates
    dropped = candidates - kept
    text = _rule(record.identity) if record.fallback is None else _fallback(record.fallback)
    if record.identity.strategy != "all":
        share = percent(kept / max(candidates, 1), digits=1)
        text += f" This distils {kept:,} of {counted(candidates, 'sample')} ({share})."
    if dropped:
        text += f" The other {dropped:,} are trained on their true labels alone."
    if record.num_wrong:
        all_of_them = record.num_wrong_selected == record.num_wrong
        wrong = "all" if all_of_them else f"{record.num_wrong_selected:,}"
        text += (
            f" The teacher gets {counted(record.num_wrong, 'sample')} wrong, and {wrong} of these "
            "are distilled."
        )
    if record.num_not_cached:
        text += f" {counted(record.num_not_cached, 'sample')} had no cached teacher output."
    return text


def _fallback(strategy: str) -> str:
    chosen = "samples are drawn at random" if strategy == "random" else "every sample is distilled"
    return f"The influence scores are no better than a guess, so {chosen}."


def _rule(identity: SelectionIdentity) -> str:
    if identity.strategy == "all":
        return "Selection is off: every sample is distilled."
    if identity.strategy != "influence":
        return f"The strategy is {rule(identity)}."
    low, high = ("above", "below") if sign_of(identity.score or SCORE) < 0 else ("below", "above")
    if identity.fraction is not None:
        wanted = "lowest" if high == "below" else "highest"
        return (
            f"The {100 * identity.fraction:g} % of the samples with the {wanted} scores are kept."
        )
    threshold = (identity.threshold or 0.0) * sign_of(identity.score or SCORE) + 0.0
    errors = identity.standard_errors or 0.0
    if errors < 0.0:
        return (
            f"A sample is dropped only if its score is more than {-errors:g} standard errors "
            f"{low} {threshold:g}."
        )
    margin = f"more than {errors:g} standard errors {high}" if errors else high
    return f"A sample is kept if its score is {margin} {threshold:g}."


def _diagnostics(record: SelectionRecord, found: Diagnostics) -> Iterator[tuple[str, str]]:
    if record.wrong_row_auc is not None:
        yield (
            "AUC of low scores for samples that the teacher gets wrong",
            f"{record.wrong_row_auc:.3f}",
        )
    limit = f"{found.effective_parameters:.3f} (expected at most {TRUSTED_SHARE})"
    yield "effective parameters per sample", limit
    yield "relative error of the sum rule", f"{found.sum_rule_error:.1e}"
    for name, value in found.rank_stability.items():
        yield f"rank correlation with scores at {name}", f"{value:.3f}"
    if found.leak is not None:
        yield "teacher's held-out minus test accuracy", f"{100 * found.leak:+.1f} points"
