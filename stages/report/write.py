"""report: runs, their cache and their selection -> one HTML file to read and to send.

The file is self-contained: styles, script, charts and pictures are inside it.
"""

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.publishing import publishing_file
from pipeline.artefacts.records import printable
from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import SelectionTable, read_selection_record
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.errors import ArtefactNotFound, ConfigError
from pipeline.provenance import Json, short
from stages.report.answers import answers_section, calibration_chart, on_test
from stages.report.charts import accuracy_charts, training_section
from stages.report.cost import cost_section
from stages.report.page import Folded, Origin, Page, render
from stages.report.samples import SCORE, explorer
from stages.report.selection import selection_section
from stages.report.subjects import Subjects, references
from stages.report.tables import comparison_section
from stages.report.teacher import TeacherFacts, teacher_of
from stages.report.verdict import verdict
from stages.run_groups import Group, Runs, find_runs, selection_path_of
from stages.text import counted, percent

logger = logging.getLogger(__name__)


_DOCS: Final = Path(__file__).parents[2] / "docs" / "report.md"


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Choices for a report: what it shows, and where it is written."""

    output: Path | None = None
    """None: report.html in the workspace of the runs."""
    baselines: tuple[str, ...] = ()
    """Names of the students that all are compared with; empty: no teacher, and distillation."""
    selection: Path | None = None
    """Selection table of the samples; None: the last one of the runs that has influence scores."""
    thumbnails: int = 200
    """Largest number of samples."""


def execute(
    places: Sequence[Path], settings: ReportSettings, *, overrides: Sequence[str] = ()
) -> Path:
    """Write a report of the runs at ``places``.

    The date of the report is today's, or that of the environment variable SOURCE_DATE_EPOCH.

    Args:
        places: configurations, workspaces, sweeps or runs, all of one data set.
        settings: contents and place of the report.
        overrides: of the configuration, as for --set.

    Raises:
        ArtefactNotFound: if there are no runs, or their data set is gone.
        ArtefactMismatch: if they are of several data sets, or a file is damaged.
        ConfigError: if a baseline is not one of the students, or the output is a folder.
    """
    if settings.output is not None and settings.output.is_dir():
        raise ConfigError(f"--output {settings.output} is a folder (expected the name of a file).")
    runs = find_runs(places, overrides)
    dataset = Dataset.open(runs.workspace / "data")
    output = settings.output or runs.workspace / "report.html"
    origin = _origin(_command(places, settings, overrides), output)
    text = render(_page(runs, dataset, settings, origin))
    with publishing_file(output) as partial:
        partial.write_text(text, encoding="utf-8")
    logger.info(
        "%s: %s in %s, %.1f MB",
        output,
        counted(len(runs.groups), "student"),
        counted(runs.num_runs, "run"),
        output.stat().st_size / 1e6,
    )
    return output


def _command(places: Sequence[Path], settings: ReportSettings, overrides: Sequence[str]) -> str:
    """The command that writes the report again, with paths as seen from the present folder."""
    words = ["heartcut", "report", *(str(_near(place)) for place in places)]
    for override in overrides:
        words += ["--set", override]
    for baseline in settings.baselines:
        words += ["--baseline", baseline]
    if settings.selection is not None:
        words += ["--selection", str(_near(settings.selection))]
    if settings.thumbnails != ReportSettings.thumbnails:
        words += ["--thumbnails", str(settings.thumbnails)]
    return shlex.join(words)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _origin(command: str, output: Path) -> Origin:
    """Date, command, and the documentation as seen from the report."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(seconds), UTC) if seconds.isdecimal() else datetime.now()
    address = ""
    if _DOCS.exists():
        address = quote(Path(os.path.relpath(_DOCS, output.resolve().parent)).as_posix())
    return Origin(
        date=f"{now.day} {now:%B %Y}",
        command=printable(command),
        docs="docs/report.md",
        address=address,
    )


def _page(runs: Runs, dataset: Dataset, settings: ReportSettings, origin: Origin) -> Page:
    table = _table(runs, settings)
    teacher = _teacher(runs, dataset, table)
    subjects = Subjects(
        groups=runs.groups,
        compared=_references(runs.groups, settings.baselines),
        teacher=teacher,
        answers=None if teacher is None else teacher.on_test(dataset),
        num_test=dataset.eval.num_samples,
        num_held_out=len(dataset.record.held_out),
        class_names=dataset.record.class_names,
    )
    comparison = comparison_section(subjects)
    frames = on_test(subjects.drawn, dataset)
    calibration = calibration_chart(frames, subjects, table)
    charts = (*accuracy_charts(subjects), *([] if calibration is None else [calibration]))
    sections = [
        replace(comparison, charts=charts),
        training_section(subjects),
        answers_section(frames, subjects),
        cost_section(subjects),
    ]
    if table is not None:
        students = [g.name for g in runs.groups if g.runs[0].result.inputs.selection == table.id]
        sections.append(selection_section(table, students))
    return Page(
        title=f"heartcut: {printable(runs.workspace.resolve().name)}",
        intro=_intro(runs, dataset, teacher),
        verdict=verdict(subjects),
        sections=tuple(sections),
        explorer=None if table is None else _explorer(runs, table, teacher, dataset, settings),
        explorer_intro="" if table is None else _about_samples(table),
        provenance=_provenance(runs, dataset, teacher, table),
        origin=origin,
    )


def _intro(runs: Runs, dataset: Dataset, teacher: TeacherFacts | None) -> str:
    """Number of students, runs and images; the cache that is shown, if there are several."""
    several = len(runs.caches) > 1
    teachers = ("no teacher", "one teacher", f"{len(runs.caches)} teacher caches")
    text = (
        f"{counted(len(runs.groups), 'student')} of {teachers[min(len(runs.caches), 2)]}, "
        f"{counted(runs.num_runs, 'run')}, "
        f"{dataset.train.num_samples:,} training images of {dataset.num_classes} classes."
    )
    if several and teacher is not None:
        text += f" The teacher and the samples on this page are of cache {short(teacher.cache.id)}."
    return text


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


def _provenance(
    runs: Runs, dataset: Dataset, teacher: TeacherFacts | None, table: SelectionTable | None
) -> Folded:
    """Data, teacher, ids and versions behind the numbers."""
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
        *_ids(run),
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
    return Folded(title="What was run", facts=shown)


def _ids(run: Run) -> list[tuple[str, str]]:
    """Ids of the inputs of a run, short enough to read."""
    inputs = run.result.inputs
    found = (("cache", inputs.cache), ("soft labels", inputs.soft_labels))
    return [(name, short(value)) for name, value in found if value is not None]


def _of_teacher(teacher: TeacherFacts) -> list[tuple[str, str]]:
    summary = teacher.cache.summary
    accuracy = f"training {percent(summary.accuracy_training[0])}"
    if summary.accuracy_held_out:
        accuracy += f", held out {percent(summary.accuracy_held_out[0])}"
    if teacher.test is not None:
        accuracy += f", test {percent(teacher.test.summary.accuracy_training[0])}"
    views = teacher.cache.shape.num_views - 1
    return [
        ("teacher", summary.teacher),
        ("teacher's accuracy, clean view", accuracy),
        ("teacher wrong", f"{summary.num_wrong:,} training and held-out samples"),
        ("views", f"{views} and the clean one"),
    ]


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
    text = (
        "Training images with the teacher's likeliest classes, the label that students learn (the "
        "mean over the views), and whether they are distilled. The true label is bold."
    )
    if table.record.scores is not None:
        text += f" Influence is {SCORE}: above zero, the soft label is estimated to help."
    return text
