"""compare: one configuration -> every stage, several students, one table.

A sweep of named points that share a data set and a teacher. It prepares the data, trains the
teacher where there is no checkpoint, caches it once, and trains the student under every variant and
seed. Where `select.cache` names a cache, no teacher is trained or cached. Outputs that exist are
kept. Unlike a sweep, it stops at the first failure, chooses nothing, and reports the test images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import ConfigError
from pipeline.methods.paired_differences import spread
from pipeline.runtime.ranks import ALONE, Ranks
from stages import prepare
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.sweep.points import with_seed
from stages.sweep.tasks import Students
from stages.text import markdown_table, percent, percent_over_seeds

_HEADER = (
    "variant",
    "seeds",
    "test",
    "held out, mean of last",
    "best epoch",
    "agrees with teacher",
    "distilled",
    "images/s",
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All variants, in the order of the configuration."""

    runs: Mapping[str, list[Run]]
    """Name of each variant -> its runs, one for each seed."""
    teacher: str
    """Name and accuracy, for people."""
    workspace: Path


def execute(config: Config, *, ranks: Ranks = ALONE) -> Comparison:
    """Run all stages for every variant and seed of ``config.compare``, one after the other."""
    variants = {
        name: with_overrides(config, overrides)
        for name, overrides in (config.compare.variants or {"student": ()}).items()
    }
    _require_shared_teacher(config, variants)
    dataset = ranks.first_before_others(lambda: prepare.execute(config))
    students = Students(ranks=ranks, log_results=True)
    if config.select.cache is None:
        students.cache_teacher(config)
    runs = {
        name: [students.train(with_seed(variant, seed)) for seed in config.compare.seeds]
        for name, variant in variants.items()
    }
    if ranks.is_first:
        paths = {name: [run.path for run in own] for name, own in runs.items()}
        comparison.write(config.workspace, paths)
    return Comparison(
        runs=runs, teacher=_describe_teacher(config, dataset), workspace=config.workspace
    )


def _require_shared_teacher(config: Config, variants: Mapping[str, Config]) -> None:
    """A comparison of students has one data set and one cache."""
    for name, variant in variants.items():
        for section in ("workspace", "prepare", "views", "train_teacher", "cache_teacher"):
            if getattr(variant, section) != getattr(config, section):
                raise ConfigError(
                    f"compare.variants.{name} changes {section} (expected only select and "
                    "train_student to differ). Use another configuration for another teacher."
                )


def _describe_teacher(config: Config, dataset: Dataset) -> str:
    """Name and accuracy: on the test images where they were cached, else on held-out ones."""
    caches = Caches(config=config, dataset=dataset)
    test = caches.test if config.select.cache is None else None
    summary = (test or caches.training).summary
    accuracies = summary.accuracy_training if test else summary.accuracy_held_out
    images = "test" if test else "held out"
    return summary.teacher + (f", {images} {percent(accuracies[0])}" if accuracies else "")


def as_markdown(found: Comparison) -> str:
    """The table of a comparison: accuracies in per cent, mean and standard deviation over seeds."""
    table = markdown_table([_HEADER, *(_cells(*variant) for variant in found.runs.items())])
    return f"{table}\n\nteacher: {found.teacher}. Everything lies under {found.workspace}."


def _cells(name: str, runs: list[Run]) -> tuple[str, ...]:
    results = [run.result for run in runs]
    agreements = (r.teacher_agreement_test for r in results)
    return (
        name,
        str(len(results)),
        _over_seeds(r.test_accuracy for r in results),
        _over_seeds(r.held_out_accuracy_mean_of_last for r in results),
        _over_seeds(r.held_out_accuracy_best for r in results),
        _over_seeds(share for share in agreements if share is not None),
        percent(mean(r.num_distilled / r.num_training_samples for r in results), digits=1),
        f"{mean(r.cost.training_images_per_second for r in results):,.0f}",
    )


def _over_seeds(shares: Iterable[float]) -> str:
    found = spread(shares)
    return percent_over_seeds(found.mean, found.std)
