"""compare: one configuration -> every stage, several students, one table.

Prepares the data, trains the teacher where there is no checkpoint, caches it once (none of which is
done where `select.cache` names a cache), and trains the
student under every variant and seed. What exists already is not made again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import ConfigError
from pipeline.runtime.ranks import ALONE, Ranks
from stages import cache_teacher, prepare, select, train_student, train_teacher
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant over all seeds."""

    name: str
    runs: list[Run]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All variants, in the order of the configuration."""

    rows: list[Row]
    teacher: str
    """What is known of it, for people."""
    workspace: Path


def execute(config: Config, *, ranks: Ranks = ALONE) -> Comparison:
    """Run all stages for every variant and seed of ``config.compare``, one after the other."""
    variants = {
        name: with_overrides(config, overrides)
        for name, overrides in (config.compare.variants or {"student": ()}).items()
    }
    _require_shared_teacher(config, variants)
    dataset = ranks.first_before_others(lambda: prepare.execute(config))
    if config.select.cache is None:
        if config.cache_teacher.checkpoint is None:
            train_teacher.execute(config, ranks=ranks)
        cache_teacher.execute(config, ranks=ranks)
    rows = [
        Row(name=name, runs=_students(variant, config.compare.seeds, ranks))
        for name, variant in variants.items()
    ]
    if ranks.is_first:
        comparison.write(config.workspace, _record(rows, config.workspace))
    return Comparison(
        rows=rows, teacher=_describe_teacher(config, dataset), workspace=config.workspace
    )


def _record(rows: list[Row], workspace: Path) -> comparison.ComparisonRecord:
    """Which runs have which names, for `report`."""
    return comparison.ComparisonRecord(
        variants=tuple(
            comparison.Variant(
                name=row.name,
                runs=tuple(str(run.path.relative_to(workspace)) for run in row.runs),
            )
            for row in rows
        )
    )


def _describe_teacher(config: Config, dataset: Dataset) -> str:
    """Name and accuracy: on the test images where they were cached, else on held-out ones."""
    caches = Caches(config=config, dataset=dataset)
    test = caches.test if config.select.cache is None else None
    summary = (test or caches.training).summary
    accuracies = summary.accuracy_training if test else summary.accuracy_held_out
    told = f", {'test' if test else 'held out'} {100 * accuracies[0]:.2f} %" if accuracies else ""
    return f"{summary.teacher}{told}"


def _students(config: Config, seeds: Sequence[int], ranks: Ranks) -> list[Run]:
    """One run for each seed; what they learn from is made, and told, once."""
    if config.train_student.distil:
        select.execute(config, ranks=ranks)
    seeded = [with_overrides(config, [f"train_student.seed={seed}"]) for seed in seeds]
    return [train_student.execute(each, ranks=ranks) for each in seeded]


def _require_shared_teacher(config: Config, variants: dict[str, Config]) -> None:
    """A comparison of students has one data set and one cache."""
    for name, variant in variants.items():
        for section in ("workspace", "prepare", "views", "train_teacher", "cache_teacher"):
            if getattr(variant, section) != getattr(config, section):
                raise ConfigError(
                    f"compare.variants.{name} changes {section} (expected only select and "
                    "train_student to differ). Use another configuration for another teacher."
                )


def as_markdown(comparison: Comparison) -> str:
    """The table of a comparison: accuracies in per cent, mean and standard deviation over seeds."""
    header = (
        "variant",
        "seeds",
        "test",
        "held out, mean of last",
        "best epoch",
        "agrees with teacher",
        "distilled",
        "images/s",
    )
    rows = [header, *(_cells(row) for row in comparison.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines.append(f"\nteacher: {comparison.teacher}. Everything lies under {comparison.workspace}.")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    results = [run.result for run in row.runs]
    agreements = [r.teacher_agreement_test for r in results if r.teacher_agreement_test is not None]
    share = mean(r.num_distilled / r.num_training_samples for r in results)
    return (
        row.name,
        str(len(results)),
        _percent([r.test_accuracy for r in results]),
        _percent([r.held_out_accuracy_mean_of_last for r in results]),
        _percent([r.held_out_accuracy_best for r in results]),
        _percent(agreements) if agreements else "-",
        f"{100 * share:.1f} %",
        f"{mean(r.cost.training_images_per_second for r in results):,.0f}",
    )


def _percent(shares: list[float]) -> str:
    if len(shares) == 1:
        return f"{100 * shares[0]:.2f} %"
    return f"{100 * mean(shares):.2f} ± {100 * stdev(shares):.2f} %"
