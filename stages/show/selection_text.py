"""Summary of a selection table as text."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.artefacts.scores import Diagnostics
from stages.show.selection import Sample, SelectionShown
from stages.show.text import (
    bar,
    facts_table,
    histogram_table,
    of_class,
    plain,
    rendered,
    table,
    title,
    with_bars,
)
from stages.text import counted, decimal, percent

DIAGNOSTICS: Final = "diagnostics, explained in docs/reference/selection.md"

_MOST_CLASSES: Final = 30
_MOST_REASONS: Final = 10


def as_text(shown: SelectionShown) -> str:
    """Print the summary of a selection."""
    return rendered(_blocks(shown))


def _blocks(shown: SelectionShown) -> Iterator[RenderableType]:
    yield facts_table(tuple(_facts(shown)))
    for warning in shown.warnings:
        yield plain(f"warning: {warning}")
    yield _reasons(shown)
    yield _classes(shown)
    if shown.histogram is not None:
        heading = f"{shown.score} where the teacher is right and wrong; end bins hold the rest"
        yield histogram_table(heading, shown.histogram, threshold=shown.threshold)
    for heading, samples in (
        (f"most helpful by {shown.score}", shown.helpful),
        (f"most harmful by {shown.score}", shown.harmful),
    ):
        if samples:
            yield _samples(heading, samples)
    issues = shown.label_issues
    if issues is not None and issues.likeliest:
        yield _samples("labels that are probably wrong, likeliest first", issues.likeliest)
    if shown.record.scores is not None:
        facts = tuple(_diagnostics(shown.record.scores.diagnostics))
        yield Group(title(DIAGNOSTICS), facts_table(facts))
        yield _solves(shown)


def _facts(shown: SelectionShown) -> Iterator[tuple[str, str]]:
    record = shown.record
    yield "table", shown.path
    yield "id", shown.id
    yield "strategy", shown.rule
    if record.identity.class_quota:
        quota = f"{record.identity.class_quota:g}"
        yield "class quota", f"every class keeps at least {quota} of the overall share"
    share = shown.num_selected / max(shown.num_candidates, 1)
    candidates = counted(shown.num_candidates, "candidate")
    kept = f"{shown.num_selected:,} of {candidates}, {percent(share)}"
    yield "selected", kept
    if record.fallback is not None:
        instead = f'strategy "{record.fallback}", because the scores are no better than a guess'
        yield "chosen by", instead
    if shown.is_edited:
        yield (
            "edited",
            f"select kept {counted(record.num_selected, 'sample')}; the table was edited since",
        )
    yield "held out", f"{shown.num_held_out:,} of {counted(shown.num_samples, 'sample')}"
    if record.num_not_cached:
        samples = counted(record.num_not_cached, "sample")
        yield "not in the cache", f"{samples}, trained with hard labels"
    if record.accepted:
        yield "accepted", f"other {' and '.join(record.accepted)} than the teacher's cache"
    yield (
        "teacher wrong",
        f"{counted(shown.num_wrong, 'candidate')}: {shown.num_wrong_left_out:,} left out, "
        f"{shown.num_wrong_selected:,} selected",
    )
    if record.wrong_row_auc is not None:
        yield "AUC", f"{record.wrong_row_auc:.4f} of low dloss_undistill for these samples"
    if record.predicted_gain is not None:
        yield "predicted gain", f"{record.predicted_gain:.4g}, first order"
    issues = shown.label_issues
    if issues is not None:
        yield "label issues", f"{counted(issues.num, 'sample')}, {issues.num_selected:,} selected"


def _reasons(shown: SelectionShown) -> Table:
    found = list(shown.reasons.items())
    largest = max(shown.reasons.values(), default=0)
    rows = [(reason, f"{num:,}", bar(num, largest)) for reason, num in found[:_MOST_REASONS]]
    if len(found) > _MOST_REASONS:
        rest = sum(num for _, num in found[_MOST_REASONS:])
        rows.append((f"{len(found) - _MOST_REASONS:,} others", f"{rest:,}", ""))
    return with_bars(("reason", "samples", ""), rows)


def _classes(shown: SelectionShown) -> Table:
    found = sorted(shown.classes, key=lambda one: one.share)
    if len(found) <= _MOST_CLASSES:
        found = list(shown.classes)
    rows = [
        (
            of_class(one.label, one.name),
            f"{one.num_selected:,}",
            f"{one.num_candidates:,}",
            f"{one.num_wrong:,}",
            percent(one.share, digits=1),
            bar(one.share, 1.0),
        )
        for one in found[:_MOST_CLASSES]
    ]
    if len(found) > _MOST_CLASSES:
        rows.append((f"{len(found) - _MOST_CLASSES:,} more, use --json for all", *("",) * 5))
    return with_bars(("class", "kept", "of", "wrong", "share", ""), rows)


def _samples(heading: str, samples: Sequence[Sample]) -> Table:
    header = ("sample", "label", "teacher", "p label", "beta", "p refit", "score", "+-", "kept")
    rows = [
        (
            str(one.sample_index),
            of_class(one.label, one.label_name),
            "-" if one.teacher_class is None else of_class(one.teacher_class, one.teacher_name),
            decimal(one.p_target, ".3f"),
            decimal(one.beta, ".3f"),
            decimal(one.p_refit, ".3f"),
            decimal(one.score, "+.2e"),
            decimal(one.standard_error, ".0e"),
            "yes" if one.selected else "no",
        )
        for one in samples
    ]
    return table(header, rows, left=3, heading=heading)


def _diagnostics(found: Diagnostics) -> Iterator[tuple[str, str]]:
    yield "loss predicted", f"of {counted(found.num_target, 'sample')}, {found.target}"
    yield "p_eff / N", f"{found.effective_parameters:.4f}, at most 0.25 is OK"
    if found.gain_over_guess is not None:
        gain, error = found.gain_over_guess
        yield "gain over a guess", f"{gain:.4f} nats, above {2 * error:.4f} (two errors) is OK"
    stability = ", ".join(f"{value:.3f} at {name}" for name, value in found.rank_stability.items())
    if stability:
        yield "rank stability", f"{stability}; at least 0.9 is OK"
    yield "sum rule", f"missed by {found.sum_rule_error:.1e}, at most 1e-3 is OK"
    yield "target cosine", f"{found.target_weight_cosine:+.3f}, far from 1 and -1 is OK"
    if found.leak is not None:
        yield "leak", f"{100 * found.leak:+.2f} points, held out minus test; at most 5 is OK"
    if found.second_order_gain is not None:
        yield "second-order gain", f"{found.second_order_gain:.4g}"
    yield "target seen", "yes, by the teacher's training" if found.target_in_sample else "no"


def _solves(shown: SelectionShown) -> Table:
    assert shown.record.scores is not None, "a table with scores has solves"
    header = (
        "head",
        "l2",
        "rows",
        "steps",
        "grad",
        "CG",
        "residual",
        "p_eff",
        "loss",
    )
    rows = [
        (
            one.linearised_at,
            f"{one.l2:.2g}",
            f"{one.num_rows:,}",
            str(one.newton_iterations),
            f"{one.gradient_norm:.0e}",
            str(one.iterations),
            f"{one.residual:.0e}",
            f"{one.effective_parameters:.3f}",
            f"{one.held_out_loss:.4f}",
        )
        for one in shown.record.scores.solves
    ]
    return table(header, rows)
