"""show selection: a selection table -> the samples it keeps, the reasons, and its checks.

Reads the table, and `data/dataset.json` of its workspace for the names of the classes.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.artefacts.dataset import read_record
from pipeline.artefacts.records import Record
from pipeline.artefacts.selection import SelectionIdentity, SelectionRecord, SelectionTable
from pipeline.artefacts.tables import flags
from stages.selection.wording import rule, sign_of, warnings_of_table
from stages.show.places import find_table
from stages.show.records import Histogram, histogram, name_of, number

SHOWN_SAMPLES: Final = 10
_BINS: Final = 20
_EXTREMES: Final = (0.005, 0.995)
"""Quantiles that bound the bins of the histogram."""
_DEFAULT_SCORE: Final = "dloss_undistill"


class Sample(Record):
    """One row of the table."""

    sample_index: int
    label: int
    label_name: str | None
    teacher_class: int | None
    """None: the sample is not in the cache."""
    teacher_name: str | None
    p_target: float | None
    p_refit: float | None
    beta: float | None
    score: float | None
    standard_error: float | None
    selected: bool
    reason: str


class ClassShare(Record):
    """Counts of the candidates of one class."""

    label: int
    name: str | None
    num_candidates: int
    num_selected: int
    num_wrong: int
    """Candidates that the teacher gets wrong."""
    share: float
    """Share of the candidates that is selected."""


class LabelIssues(Record):
    """Samples whose label is probably wrong."""

    num: int
    num_selected: int
    likeliest: tuple[Sample, ...]
    """Samples with the least `p_refit` first, at most 10."""


class SelectionShown(Record):
    """Content of `show selection`; its JSON has these keys.

    The counts are taken from the rows. The counts in ``record`` were written by `select`, and
    differ if the table was edited since.
    """

    path: str
    id: str
    rule: str
    """Samples that the strategy keeps, in words."""
    record: SelectionRecord
    """Identity, AUC, predicted gain, solves and diagnostics of the table."""
    is_edited: bool
    num_samples: int
    num_held_out: int
    num_candidates: int
    num_selected: int
    num_wrong: int
    """Candidates that the teacher gets wrong."""
    num_wrong_selected: int
    num_wrong_left_out: int
    reasons: dict[str, int]
    """Numbers of samples by reason, the most frequent first."""
    classes: tuple[ClassShare, ...]
    """Classes with a candidate, by label."""
    score: str | None
    """Column of the histogram and of the samples below; None: there are no scores."""
    threshold: float | None
    """Threshold of that column, if the strategy keeps what is better."""
    histogram: Histogram | None
    helpful: tuple[Sample, ...]
    """Samples with the most helpful scores, at most 10."""
    harmful: tuple[Sample, ...]
    label_issues: LabelIssues | None
    """None if they were not computed."""
    warnings: tuple[str, ...]
    """Reasons to doubt the scores; `select` prints them too."""


def execute(place: str, overrides: Sequence[str] = ()) -> SelectionShown:
    """Describe the table at ``place``: a path, WORKSPACE/NAME, or a configuration.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged, or not a table.
    """
    table = SelectionTable.open(find_table(place, overrides))
    frame, record, names = table.frame, table.record, _class_names(table)
    candidates = frame["rank"].to_numpy() >= 0
    selected = table.distilled
    wrong = candidates & ~flags(frame["teacher_correct"])
    score = _score(table)
    helpful, harmful = _extremes(frame, score, names)
    return SelectionShown(
        path=str(table.path),
        id=table.id,
        rule=rule(record.identity),
        record=record,
        is_edited=int(selected.sum()) != record.num_selected,
        num_samples=len(frame),
        num_held_out=int(flags(frame["held_out"]).sum()),
        num_candidates=int(candidates.sum()),
        num_selected=int(selected.sum()),
        num_wrong=int(wrong.sum()),
        num_wrong_selected=int((wrong & selected).sum()),
        num_wrong_left_out=int((wrong & ~selected).sum()),
        reasons=_reasons(frame),
        classes=_classes(frame, candidates, selected, wrong, names),
        score=score,
        threshold=None if score is None else _threshold(record.identity, score),
        histogram=None if score is None else _histogram(frame, score),
        helpful=helpful,
        harmful=harmful,
        label_issues=_label_issues(frame, score, names),
        warnings=tuple(warnings_of_table(table)),
    )


def _class_names(table: SelectionTable) -> list[str]:
    """Read class names from the data set of the workspace; none if it has other samples."""
    folder = table.path.resolve().parent.parent / "data"
    if not (folder / "dataset.json").exists():
        return []
    record = read_record(folder)
    counts = pd.Series(record.train.class_counts)
    found = table.frame["label"].value_counts()
    is_same = found.eq(counts[counts > 0].reindex(found.index)).all()
    return record.class_names if is_same and len(table.frame) == counts.sum() else []


def _reasons(frame: pd.DataFrame) -> dict[str, int]:
    counts = frame["reason"].fillna("").value_counts(sort=True)
    return {str(reason): int(num) for reason, num in counts.items()}


def _classes(
    frame: pd.DataFrame,
    candidates: NDArray[np.bool_],
    selected: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    names: Sequence[str],
) -> tuple[ClassShare, ...]:
    found, places = np.unique(frame["label"].to_numpy()[candidates], return_inverse=True)
    nums = np.bincount(places, minlength=len(found)).tolist()
    kept, missed = (
        np.bincount(places[flags[candidates]], minlength=len(found)).tolist()
        for flags in (selected, wrong)
    )
    return tuple(
        ClassShare(
            label=label,
            name=name_of(label, names),
            num_candidates=nums[row],
            num_selected=kept[row],
            num_wrong=missed[row],
            share=kept[row] / nums[row],
        )
        for row, label in enumerate(found.tolist())
    )


def _score(table: SelectionTable) -> str | None:
    """Find the column that the strategy reads, or the default; None if nothing was scored."""
    wanted = table.record.identity.score
    score = wanted if wanted is not None and wanted in table.frame else _DEFAULT_SCORE
    return score if np.isfinite(_values(table.frame, score)).any() else None


def _values(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _threshold(identity: SelectionIdentity, score: str) -> float | None:
    if identity.strategy != "influence" or identity.fraction is not None:
        return None
    return sign_of(score) * (identity.threshold or 0.0) + 0.0


def _histogram(frame: pd.DataFrame, score: str) -> Histogram:
    values = _values(frame, score)
    known = np.isfinite(values)
    right = flags(frame["teacher_correct"])[known]
    return histogram(values[known], right, _edges(values[known]))


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make equal bins between the extremes, with an edge at 0."""
    low, high = np.quantile(values, _EXTREMES)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    width = max((high - low) / _BINS, np.finfo(np.float64).tiny)
    first, last = np.floor(low / width), max(np.ceil(high / width), 1.0)
    return width * np.arange(first, last + 1.0)


def _extremes(
    frame: pd.DataFrame, score: str | None, names: Sequence[str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Find the samples that help and harm most."""
    if score is None:
        return (), ()
    values = pd.Series(sign_of(score) * _values(frame, score))
    values = values[np.isfinite(values)]
    ends = (values.nlargest(SHOWN_SAMPLES), values.nsmallest(SHOWN_SAMPLES))
    helpful, harmful = (_samples(frame.iloc[end.index.to_numpy()], score, names) for end in ends)
    return helpful, harmful


def _label_issues(
    frame: pd.DataFrame, score: str | None, names: Sequence[str]
) -> LabelIssues | None:
    if frame["label_issue"].isna().all():
        return None
    issues = flags(frame["label_issue"])
    probs = pd.Series(_values(frame, "p_refit"))[issues].fillna(np.inf)
    rows = frame.iloc[probs.nsmallest(SHOWN_SAMPLES).index.to_numpy()]
    return LabelIssues(
        num=int(issues.sum()),
        num_selected=int((issues & flags(frame["selected"])).sum()),
        likeliest=_samples(rows, score, names),
    )


def _samples(rows: pd.DataFrame, score: str | None, names: Sequence[str]) -> tuple[Sample, ...]:
    return tuple(_sample(row, score, names) for row in rows.to_dict("records"))


def _sample(row: Mapping[Hashable, object], score: str | None, names: Sequence[str]) -> Sample:
    label, teacher = (int(number(row[name]) or 0) for name in ("label", "teacher_class"))
    reason = row["reason"]
    return Sample(
        sample_index=int(str(row["sample_index"])),
        label=label,
        label_name=name_of(label, names),
        teacher_class=None if teacher < 0 else teacher,
        teacher_name=name_of(teacher, names),
        p_target=number(row["p_target"]),
        p_refit=number(row["p_refit"]),
        beta=number(row["beta"]),
        score=None if score is None else number(row[score]),
        standard_error=number(row.get(f"{score}_se")),
        selected=bool(row["selected"]),
        reason=reason if isinstance(reason, str) else "",
    )
