"""report: runs, their cache and their selection -> one HTML file to look at and to send.

The file asks for nothing: styles, script, charts and pictures are inside it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.publishing import publishing_file
from pipeline.artefacts.records import printable
from pipeline.artefacts.scores import Diagnostics
from pipeline.artefacts.selection import SelectionTable, read_selection_record
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.errors import ArtefactNotFound, ConfigError
from pipeline.provenance import Json, short
from stages.report.charts import answers_section, drawn, influence_chart, on_test, training_section
from stages.report.page import Page, ReportSection, render
from stages.report.samples import SCORE, explorer
from stages.report.tables import comparison_section, cost_section, of_ids, references
from stages.report.teacher import TeacherFacts, teacher_of
from stages.run_groups import Group, Runs, find_runs, selection_path_of
from stages.selection.wording import warnings_of_table
from stages.text import counted, percent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What of the runs is shown, and where."""

    output: Path | None = None
    """None: report.html in the workspace of the runs."""
    baselines: tuple[str, ...] = ()
    """Names of the students that all are compared with; none: plain training, and distillation."""
    selection: Path | None = None
    """The table whose samples are shown; None: that of the runs which has influence scores."""
    thumbnails: int = 200
    """Most samples shown."""


def execute(
    places: Sequence[Path], settings: ReportSettings, *, overrides: Sequence[str] = ()
) -> Path:
    """Write a report of the runs at ``places``.

    Args:
        places: configurations, workspaces, sweeps or runs, of one data set.
        settings: what is shown.
        overrides: of the configuration, as for --set.

    Raises:
        ArtefactNotFound: if there are no runs, or their data set is gone.
        ArtefactMismatch: if they are of several data sets, or something is damaged.
        ConfigError: if a baseline is none of the students, or the output is a folder.
    """
    if settings.output is not None and settings.output.is_dir():
        raise ConfigError(f"--output {settings.output} is a folder (expected the name of a file).")
    runs = find_runs(places, overrides)
    dataset = Dataset.open(runs.workspace / "data")
    output = settings.output or runs.workspace / "report.html"
    text = render(_page(runs, dataset, settings))
    with publishing_file(output) as partial:
        partial.write_text(text, encoding="utf-8")
    logger.info(
        "%s: %d students in %d runs, %.1f MB",
        output,
        len(runs.groups),
        runs.num_runs,
        output.stat().st_size / 1e6,
    )
    return output


def _page(runs: Runs, dataset: Dataset, settings: ReportSettings) -> Page:
    compared = _references(runs.groups, settings.baselines)
    shown = drawn(runs.groups, compared)
    table = _table(runs, settings)
    teacher = _teacher(runs, dataset, table)
    sections = [
        _summary(runs, dataset, teacher, table),
        comparison_section(runs.groups, compared),
        training_section(shown, num_groups=len(runs.groups)),
        answers_section(
            on_test(shown, dataset),
            None if teacher is None else teacher.on_test(dataset),
            table,
            dataset.record.class_names,
            num_groups=len(runs.groups),
        ),
        cost_section(runs.groups, teacher),
    ]
    if table is not None:
        sections.append(_selection(table))
    return Page(
        title=f"heartcut: {printable(runs.workspace.resolve().name)}",
        intro=_intro(runs, dataset, teacher),
        sections=tuple(sections),
        explorer=None if table is None else _explorer(runs, table, teacher, dataset, settings),
        explorer_intro="" if table is None else _about_samples(table),
    )


def _intro(runs: Runs, dataset: Dataset, teacher: TeacherFacts | None) -> str:
    """How much was run; of which cache the rest tells, where students have several."""
    several = len(runs.caches) > 1
    teachers = ("no teacher", "one teacher", f"{len(runs.caches)} teacher caches")
    told = (
        f"{counted(len(runs.groups), 'student')} of {teachers[min(len(runs.caches), 2)]}, "
        f"{counted(runs.num_runs, 'run')}, "
        f"{dataset.train.num_samples:,} training images of {dataset.num_classes} classes."
    )
    if several and teacher is not None:
        told += f" What is told of a teacher and of samples is of cache {short(teacher.cache.id)}."
    return told


def _references(groups: Sequence[Group], wanted: Sequence[str]) -> list[Group]:
    try:
        return references(groups, wanted)
    except KeyError as error:
        names = ", ".join(group.name for group in groups)
        raise ConfigError(
            f"--baseline {error.args[0]}: there is no such student (expected one of {names})."
        ) from error


def _table(runs: Runs, settings: ReportSettings) -> SelectionTable | None:
    """The table that is asked for, or the last one with scores, or the last one."""
    if settings.selection is not None:
        return SelectionTable.open(settings.selection)
    found = dict.fromkeys(selection_path_of(group.runs[0]) for group in runs.groups)
    paths = [path for path in found if path is not None]
    scored = [path for path in paths if read_selection_record(path).scores is not None]
    best = scored or paths
    return SelectionTable.open(best[-1]) if best else None


def _teacher(runs: Runs, dataset: Dataset, table: SelectionTable | None) -> TeacherFacts | None:
    """The teacher of the table, or of the runs."""
    cache = table.record.identity.cache if table is not None else next(iter(runs.caches), None)
    return None if cache is None else teacher_of(runs.workspace, cache, dataset, runs.config)


def _summary(
    runs: Runs, dataset: Dataset, teacher: TeacherFacts | None, table: SelectionTable | None
) -> ReportSection:
    taught = [group for group in runs.groups if group.runs[0].result.method is not None]
    run = (taught or runs.groups)[-1].runs[0]
    record = dataset.record
    facts = [
        (
            "images",
            f"{record.source}, {record.train.num_samples:,} to train on, "
            f"{len(record.held_out):,} of them held out, {record.eval.num_samples:,} to test on",
        ),
        ("classes", f"{dataset.num_classes}"),
        ("data set", short(record.id)),
        *((name, value) for name, value in of_ids(run)),
    ]
    if teacher is not None:
        facts += _of_teacher(teacher)
    if table is not None:
        facts.append(("selection", short(table.id)))
    facts += [
        ("students", ", ".join(sorted({r.result.arch for g in runs.groups for r in g.runs}))),
        ("versions", ", ".join(f"{name} {value}" for name, value in run.result.versions.items())),
        ("workspace", str(runs.workspace)),
    ]
    shown = tuple((name, printable(value)) for name, value in facts)
    return ReportSection(title="What was run", facts=shown)


def _of_teacher(teacher: TeacherFacts) -> list[tuple[str, str]]:
    summary = teacher.cache.summary
    told = [("teacher", summary.teacher)]
    accuracy = f"training {percent(summary.accuracy_training[0])}"
    if summary.accuracy_held_out:
        accuracy += f", held out {percent(summary.accuracy_held_out[0])}"
    if teacher.test is not None:
        accuracy += f", test {percent(teacher.test.summary.accuracy_training[0])}"
    told.append(("teacher's accuracy, clean view", accuracy))
    told.append(("teacher wrong", f"{summary.num_wrong:,} training and held-out rows"))
    told.append(("views", f"{teacher.cache.shape.num_views - 1} and the clean one"))
    return told


def _selection(table: SelectionTable) -> ReportSection:
    """What was selected, and whether its scores are to be believed."""
    record = table.record
    facts = [
        ("strategy", record.identity.strategy),
        ("distilled", f"{record.num_selected:,} of {record.num_candidates:,} rows"),
        (
            "of the rows that the teacher gets wrong",
            f"{record.num_wrong_selected:,} of {record.num_wrong:,}",
        ),
    ]
    if record.wrong_row_auc is not None:
        facts.append(("AUC of the score for wrong rows", f"{record.wrong_row_auc:.3f}"))
    if record.scores is not None:
        facts += _diagnostics(record.scores.diagnostics)
    chart = influence_chart(table)
    return ReportSection(
        title="Selection",
        intro="What the scores were made of, and what speaks against them."
        if record.scores is not None
        else "",
        warnings=tuple(warnings_of_table(table)),
        facts=tuple(facts),
        charts=() if chart is None else (chart,),
    )


def _diagnostics(found: Diagnostics) -> list[tuple[str, str]]:
    told = [
        ("loss that is predicted", f"of {found.num_target:,} samples, {found.target}"),
        ("effective parameters per row", f"{found.effective_parameters:.3f}, below 0.25 is well"),
        ("sum rule", f"holds to {found.sum_rule_error:.1e}"),
    ]
    stability = ", ".join(f"{value:.3f} {name}" for name, value in found.rank_stability.items())
    told += [("rank correlation with another l2", stability)] if stability else []
    if found.leak is not None:
        told.append(("held-out minus test accuracy", f"{100 * found.leak:+.1f} points"))
    return told


def _explorer(
    runs: Runs,
    table: SelectionTable,
    teacher: TeacherFacts | None,
    dataset: Dataset,
    settings: ReportSettings,
) -> dict[str, Json] | None:
    table.require_samples(dataset.train.samples.keys, dataset.train.samples.labels)
    folder = runs.workspace / "selections"
    path = soft_label_path(folder, table.record.identity.soft_labels)
    try:
        soft = SoftLabels.open(path)
    except ArtefactNotFound:
        soft = None
    return explorer(table, soft, teacher, dataset, most=settings.thumbnails)


def _about_samples(table: SelectionTable) -> str:
    told = (
        "Training images with the teacher's likeliest classes, the label that students learn "
        "(the mean over the views), and what became of them. The true label is bold."
    )
    if table.record.scores is not None:
        told += f" Influence is {SCORE}: positive = its soft label helps."
    return told
