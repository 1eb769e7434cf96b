"""Confusions: which classes are predicted for which, as a chart or, of many classes, a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from stages.report.page import Cell, Chart, Row, Table
from stages.report.svg_charts import ALARM, QUIET, short_name

MOST_CLASSES: Final = 20
"""Classes whose matrix a phone shows legibly."""
_MOST_PAIRS: Final = 12
_WIDTH: Final = 360.0
_LETTER: Final = 5.6
"""Width of a letter of the labels, roughly."""
_LONGEST_LABEL: Final = 14
_SMALLEST_NUMBER: Final = 19.0
"""Side of a cell that has room for a number."""


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """Predictions of one network, all seeds together."""

    name: str
    counts: NDArray[np.int64]
    """By label and predicted class, (C, C)."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Shares of the images of each label."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1))


def confusions(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], *, num_classes: int, name: str
) -> Confusions:
    """Count the predictions for each label."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return Confusions(name=name, counts=flat.reshape(num_classes, num_classes))


def confusion_chart(found: Confusions, class_names: Sequence[str]) -> Chart:
    """A row for each label, a column for each predicted class, mistakes in the colour of alarm."""
    return Chart(
        title=f"Confusion matrix, {found.name}",
        svg=_matrix(found, class_names),
        note="Rows are labels, columns are predictions, numbers are per cent of the row.",
    )


def confusion_list(found: Confusions, class_names: Sequence[str]) -> Chart:
    """The mistakes that occur most often."""
    mistakes = found.counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [divmod(int(place), len(mistakes)) for place in order]
    rows = [
        Row(
            name=class_names[label],
            cells=(
                Cell(text=class_names[predicted]),
                Cell(text=f"{100 * found.shares[label, predicted]:.1f} %"),
            ),
        )
        for label, predicted in pairs
        if mistakes[label, predicted]
    ]
    return Chart(
        title=f"Most frequent mistakes, {found.name}",
        svg="",
        note="Per cent of the images with the label.",
        table=Table(header=("label", "predicted as", "images"), rows=rows),
    )


def _matrix(found: Confusions, class_names: Sequence[str]) -> str:
    names = [short_name(name, longest=_LONGEST_LABEL) for name in class_names]
    margin = 12.0 + _LETTER * max(map(len, names))
    side = (_WIDTH - margin) / len(names)
    is_upright = max(map(len, names)) * _LETTER < side
    foot = 16.0 if is_upright else margin
    height = side * len(names) + foot
    worst = float((found.shares * (1 - np.eye(len(names)))).max())
    parts = []
    for label, name in enumerate(names):
        middle = (label + 0.5) * side
        parts.append(_text(margin - 5, middle + 3.5, name, anchor="end"))
        x, y = margin + middle, side * len(names) + 12
        turn = "" if is_upright else f' transform="rotate(-90 {x + 3.5:.1f} {y - 7:.1f})"'
        anchor = "middle" if is_upright else "end"
        place = (x, y) if is_upright else (x + 3.5, y - 7)
        parts.append(_text(*place, name, anchor=anchor, more=turn))
        for predicted in np.flatnonzero(found.counts[label]).tolist():
            corner = (margin + predicted * side, label * side)
            parts.append(_cell(found, (label, predicted), corner, side, worst))
    frame = (
        f'<rect x="{margin:.1f}" y="0.5" width="{side * len(names) - 0.5:.1f}" '
        f'height="{side * len(names) - 0.5:.1f}" fill="none" stroke="{QUIET}" stroke-width="0.6"/>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" font-size="10" fill="currentColor">'
        f"{''.join(parts)}{frame}</svg>"
    )


def _cell(
    found: Confusions,
    pair: tuple[int, int],
    corner: tuple[float, float],
    side: float,
    worst: float,
) -> str:
    """A coloured square with its per cent."""
    share = float(found.shares[pair])
    is_right = pair[0] == pair[1]
    opacity = 0.45 * share if is_right else 0.15 + 0.75 * share / worst
    square = (
        f'<rect x="{corner[0] + 0.5:.1f}" y="{corner[1] + 0.5:.1f}" width="{side - 1:.1f}" '
        f'height="{side - 1:.1f}" fill="{QUIET if is_right else ALARM}" '
        f'fill-opacity="{opacity:.2f}"/>'
    )
    if side < _SMALLEST_NUMBER:
        return square
    number = f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return square + _text(corner[0] + side / 2, corner[1] + side / 2 + 3.5, number, anchor="middle")


def _text(x: float, y: float, text: str, *, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
