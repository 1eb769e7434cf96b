"""compare: one configuration -> every stage, several students, one table.

A sweep of named points that share a data set and a teacher. It prepares the data, trains the
teacher where there is no checkpoint, caches it once, and trains the student under every variant and
seed. Where `select.cache` names a cache, no teacher is trained or cached. Outputs that exist are
kept. Unlike a sweep, it stops at the first failure, chooses nothing, and reports the test images.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import ConfigError
from pipeline.methods.paired_differences import paired_difference, spread
from pipeline.runtime.progress import naming
from pipeline.runtime.ranks import ALONE, Ranks
from stages import prepare
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.sweep.points import with_seed
from stages.sweep.tasks import Students
from stages.text import (
    counted,
    duration,
    percent,
    percent_over_seeds,
    percentage_points,
    text_table,
)
from stages.training.chance import guess_of, is_a_guess

logger = logging.getLogger(__name__)

_WIDTH: Final = 80
"""Columns that the table has at most."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All variants, in the order of the configuration."""

    runs: Mapping[str, list[Run]]
    """Name of each variant -> its runs, one for each seed."""
    baselines: Mapping[str, str]
    """Heading of each column of differences -> name of the variant that is subtracted."""
    teacher: str
    """Name and accuracy, for people."""
    workspace: Path


def execute(config: Config, *, ranks: Ranks = ALONE) -> Comparison:
    """Run all stages for every variant and seed of ``config.compare``, one after the other.

    Raises:
        ConfigError: if variants have different data or teachers.
    """
    variants = {
        name: with_overrides(config, overrides)
        for name, overrides in (config.compare.variants or {"student": ()}).items()
    }
    _require_shared_teacher(config, variants)
    steps = _Steps(len(_stages_before(config)) + len(variants))
    steps.begin("prepare")
    dataset = ranks.first_before_others(lambda: prepare.execute(config))
    students = Students(ranks=ranks, log_results=False)
    if config.select.cache is None:
        if config.cache_teacher.checkpoint is None:
            steps.begin("train-teacher")
            students.train_teacher(config)
        steps.begin("cache-teacher")
        students.cache_teacher(config)
    runs = _train(students, variants, config.compare.seeds, steps)
    if ranks.is_first:
        paths = {name: [run.path for run in own] for name, own in runs.items()}
        comparison.write(config.workspace, paths)
        _warn_of_guesses(runs, dataset)
    return Comparison(
        runs=runs,
        baselines=_baselines(variants),
        teacher=_describe_teacher(config, dataset),
        workspace=config.workspace,
    )


class _Steps:
    """Numbers the steps of a comparison in the log: `[2/5] cache-teacher`."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = 0

    def begin(self, step: str) -> None:
        self._begun += 1
        logger.info("[%d/%d] %s", self._begun, self._total, step)


def _stages_before(config: Config) -> list[str]:
    """List the stages that all variants share."""
    if config.select.cache is not None:
        return ["prepare"]
    own = ["train-teacher"] if config.cache_teacher.checkpoint is None else []
    return ["prepare", *own, "cache-teacher"]


def _train(
    students: Students, variants: Mapping[str, Config], seeds: Sequence[int], steps: _Steps
) -> dict[str, list[Run]]:
    """Train the student of every variant with every seed."""
    total, number = len(variants) * len(seeds), 0
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for name, variant in variants.items():
        last = number + len(seeds)
        which = f"students {number + 1} to {last}" if len(seeds) > 1 else f"student {last}"
        steps.begin(f"{name}: {which} of {total}")
        for seed in seeds:
            number += 1
            left = students.time_left(total - number + 1)
            logger.info("run %d of %d: %s, seed %d%s", number, total, name, seed, left)
            with naming(f"run {number} of {total}"):
                run = students.train(with_seed(variant, seed))
            logger.info("student %d of %d: %s, seed %d: %s", number, total, name, seed, _line(run))
            runs[name].append(run)
    return runs


def _warn_of_guesses(runs: Mapping[str, Sequence[Run]], dataset: Dataset) -> None:
    """Warn of students that are no better than a guess: their differences mean nothing."""
    every = [run.result for own in runs.values() for run in own]
    guesses = sum(is_a_guess(result, dataset) for result in every)
    if guesses:
        logger.warning(
            "%d of %s %s no better than a guess (%s): set more `train_student.epochs`, a smaller "
            "`train_student.batch_size`, or another `train_student.lr`",
            guesses,
            counted(len(every), "student"),
            "is" if guesses == 1 else "are",
            percent(guess_of(dataset)),
        )


def _line(run: Run) -> str:
    """Describe the result of a run."""
    accuracy = percent(run.result.test_accuracy)
    return f"test accuracy {accuracy}, {duration(run.result.cost.seconds)}, {run.path}"


def _require_shared_teacher(config: Config, variants: Mapping[str, Config]) -> None:
    """Reject variants with another data set or another teacher."""
    for name, variant in variants.items():
        for section in ("workspace", "prepare", "views", "train_teacher", "cache_teacher"):
            if getattr(variant, section) != getattr(config, section):
                raise ConfigError(
                    f"compare.variants.{name} changes {section} (expected only select and "
                    "train_student to differ). Use another configuration for another teacher."
                )


def _describe_teacher(config: Config, dataset: Dataset) -> str:
    """Name a teacher with its accuracy: on test images if these were cached, else held-out ones."""
    caches = Caches(config=config, dataset=dataset)
    test = caches.test if config.select.cache is None else None
    summary = (test or caches.training).summary
    accuracies = summary.accuracy_training if test else summary.accuracy_held_out
    images = "test" if test else "held-out"
    return summary.teacher + (f", {images} accuracy {percent(accuracies[0])}" if accuracies else "")


def _baselines(variants: Mapping[str, Config]) -> dict[str, str]:
    """Find the variants to compare the others with: no teacher, and KD."""
    found = {
        "no teacher": (name for name, own in variants.items() if not own.train_student.distil),
        "KD": (name for name, own in variants.items() if _is_kd(own)),
    }
    firsts = {heading: next(names, None) for heading, names in found.items()}
    return {heading: name for heading, name in firsts.items() if name is not None}


def _is_kd(config: Config) -> bool:
    """Report if all samples are distilled by KD from the teacher's own labels."""
    student, select = config.train_student, config.select
    is_plain = select.revision == "none" and select.repair == "none" and select.strategy == "all"
    has_own_inputs = student.selection is not None or student.soft_labels is not None
    is_cached = not student.online and not has_own_inputs
    return student.distil and student.method == "kd" and is_plain and is_cached


def as_text(found: Comparison) -> str:
    """Print the accuracies on the test images and their differences within 80 columns."""
    header = [
        ("", "", "test", *("minus" for _ in found.baselines)),
        ("student", "seeds", "accuracy", *found.baselines),
    ]
    table = text_table([*header, *(_cells(found, name) for name in found.runs)], width=_WIDTH)
    lines = ["Accuracies in per cent, with the standard deviation over seeds."]
    if found.baselines:
        lines.append("Differences in points, paired by seed, with a 95 % interval.")
    lines += [f"Teacher: {found.teacher}.", f"Everything is in {found.workspace}."]
    return "\n".join([table, "", *lines])


def _cells(found: Comparison, name: str) -> tuple[str, ...]:
    own = _by_seed(found.runs[name])
    accuracy = spread(own.values())
    return (
        name,
        str(accuracy.num),
        percent_over_seeds(accuracy.mean, accuracy.std, unit=""),
        *(
            "-" if other == name else _difference(own, _by_seed(found.runs[other]))
            for other in found.baselines.values()
        ),
    )


def _difference(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Mean difference in points, with its 95 % interval where there are two seeds."""
    found = paired_difference(own, other)
    assert found.mean is not None, "all variants of a comparison have the same seeds"
    return percentage_points(found.mean, found.low, found.high, plus="")  # a + would not fit


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    return {run.result.seed: run.result.test_accuracy for run in runs}
