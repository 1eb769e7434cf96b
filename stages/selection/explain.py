"""Explanations in words: why a selection table keeps or drops single samples.

Nothing is computed here: all numbers are read from the table.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.artefacts.dataset import DatasetRecord
from pipeline.artefacts.records import printable
from pipeline.artefacts.selection import SelectionTable
from pipeline.errors import ConfigError
from stages.selection.wording import rule
from stages.text import percent

_WIDTH = 80
_INDENT = 20

_MEANINGS = {
    "dloss_undistill": (
        "with everything distilled, the loss would rise without its soft label: distil it",
        "with everything distilled, the loss would fall without its soft label: do not distil it",
    ),
    "dloss_swap": (
        "with nothing distilled, the loss would rise with its soft label: do not distil it",
        "with nothing distilled, the loss would fall with its soft label: distil it",
    ),
    "dloss_remove": (
        "with nothing distilled, the loss would rise without the sample: it helps",
        "with nothing distilled, the loss would fall without the sample: it harms",
    ),
    "dloss_add": (
        "with nothing distilled, the loss would rise if it were distilled as well: do not "
        "distil it",
        "with nothing distilled, the loss would fall if it were distilled as well: distil it",
    ),
    "dloss_current": (
        "with this selection distilled, the loss would rise without its soft label: distil it",
        "with this selection distilled, the loss would fall without its soft label: do not "
        "distil it",
    ),
}
"""Meanings of a positive and of a negative score."""
_POSITIONS = {"self_influence": "self-influence", "leverage": "leverage"}


def require_samples(record: DatasetRecord, samples: Sequence[int]) -> None:
    """Reject the index of a sample that the training split does not have.

    Raises:
        ConfigError: with the first such index.
    """
    for index in samples:
        if not 0 <= index < record.train.num_samples:
            raise ConfigError(
                f"--explain {index}: sample {index} does not exist (expected 0 to "
                f"{record.train.num_samples - 1}). Pass a sample_index of the table."
            )


def explained(table: SelectionTable, class_names: Sequence[str], samples: Sequence[int]) -> str:
    """Explain why ``samples`` are kept or dropped, as text."""
    reader = _Reader(table=table, class_names=tuple(class_names))
    return "\n\n".join([str(table.path), *(reader.explanation(index) for index in samples)])


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Describes rows of a table in words."""

    table: SelectionTable
    class_names: tuple[str, ...]

    def explanation(self, index: int) -> str:
        """Explain one sample in lines of at most 80 columns."""
        row = self.table.frame.iloc[index]
        facts = [*self._teacher(row), *self._scores(row), *self._rank(row), *self._selection(row)]
        lines = [_wrapped(f"sample {index}: {_outcome(row)}", indent=2)]
        lines += [
            _wrapped(f"  {name:<{_INDENT - 3}} {fact}", indent=_INDENT) for name, fact in facts
        ]
        return "\n".join(lines)

    def _teacher(self, row: pd.Series) -> Iterator[tuple[str, str]]:
        yield "label", self._class(row["label"])
        if row["teacher_class"] < 0:
            yield "teacher's class", "unknown, the cache does not have the sample"
            return
        verdict = "right" if row["teacher_correct"] else "wrong"
        yield "teacher's class", f"{self._class(row['teacher_class'])}, {verdict}"
        yield (
            "teacher's p",
            f"{row['p_target']:.3f} for the label, {row['p_max']:.3f} for its own class",
        )
        yield "beta", f"{row['beta']:.3f}, the teacher's weight in the revised label"
        if not pd.isna(row["label_issue"]):
            yield "label issue", f"{'yes' if row['label_issue'] else 'no'}{_refitted(row)}"

    def _scores(self, row: pd.Series) -> Iterator[tuple[str, str]]:
        for name, (rises, falls) in _MEANINGS.items():
            score = float(row[name])
            if not math.isnan(score):
                error = float(row.get(f"{name}_se", math.nan))
                margin = "" if math.isnan(error) else f", standard error {error:.1e}"
                meaning = (
                    rises if score > 0 else falls if score < 0 else "the loss would not change"
                )
                yield name, f"{score:+.3e}{margin}: {meaning}"
        frame = self.table.frame
        for name, words in _POSITIONS.items():
            if not math.isnan(row[name]):
                lower = (frame[name][frame["rank"] >= 0] < row[name]).mean()
                yield words, f"{row[name]:.3e}, above {percent(lower, digits=1)} of the candidates"
        if self.table.record.scores is not None and math.isnan(row["dloss_undistill"]):
            yield "scores", "none, only candidates are scored"

    def _rank(self, row: pd.Series) -> Iterator[tuple[str, str]]:
        num = self.table.record.num_candidates
        if row["rank"] < 0:
            yield "rank", f"none, it is not one of the {num:,} candidates"
        else:
            yield "rank", f"{row['rank']:,} of {num:,} candidates (0 is distilled first)"

    def _selection(self, row: pd.Series) -> Iterator[tuple[str, str]]:
        record, frame = self.table.record, self.table.frame
        yield "strategy", rule(record.identity)
        if record.fallback is not None:
            yield "chosen by", f"{record.fallback}: the scores are no better than a guess"
        if record.identity.class_quota:
            yield (
                "class quota",
                f"every class keeps at least {record.identity.class_quota:g} of the overall share",
            )
        alike = frame[(frame["label"] == row["label"]) & (frame["rank"] >= 0)]
        overall = record.num_selected / max(record.num_candidates, 1)
        share = 0.0 if alike.empty else float(alike["selected"].mean())
        yield (
            "its class",
            f"{int(alike['selected'].sum()):,} of {len(alike):,} candidates of class "
            f"{self._class(row['label'])} kept, {percent(share, digits=1)}; "
            f"{percent(overall, digits=1)} overall",
        )

    def _class(self, label: object) -> str:
        number = int(str(label))
        name = self.class_names[number] if number < len(self.class_names) else str(number)
        return str(number) if name == str(number) else f"{number} ({printable(name)})"


def _outcome(row: pd.Series) -> str:
    if row["held_out"]:
        return "held out, so no student trains on it and it is neither kept nor dropped"
    if row["rank"] < 0:
        return f"{row['reason']}, so it keeps its hard label"
    return f"{'kept' if row['selected'] else 'dropped'} ({row['reason']})"


def _refitted(row: pd.Series) -> str:
    if math.isnan(row["p_refit"]):
        return ""
    return f", a head that did not see the sample gives its label {row['p_refit']:.3f}"


def _wrapped(line: str, *, indent: int) -> str:
    return textwrap.fill(line, width=_WIDTH, subsequent_indent=" " * indent)
