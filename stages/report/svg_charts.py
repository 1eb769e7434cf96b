"""Charts as SVG text: legible on light and dark pages, with the same bytes for the same numbers."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib import rcParams
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.methods.metrics import Reliability

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6bb1")
"""Distinct to colour-blind readers (Okabe and Ito 2008), on white and on black."""
_STYLES: Final = ("-", "--", ":")
_TAG: Final = re.compile(r"<[^>]+>")
_ID: Final = re.compile(r'(\bid="|url\(#|xlink:href="#)')
"""Places where an id is given or referred to."""
INK: Final = "#0a0b0c"
"""Stands for the colour of the page's text, which replaces it."""
QUIET: Final = "#8b96a1"
"""A grey that is visible on light and dark pages."""
ALARM: Final = "#d0582a"
"""A red for mistakes that is visible on light and dark pages, and is no student's colour."""
PAGE_WIDTH: Final = 4.4
"""Width of a chart on the page in inches: its text stays legible on a phone without scrolling."""
_LONGEST_NAME: Final = 32
_LONGEST_CLASS: Final = 16
_JOINER: Final = "\u2060"
"""An invisible character; matplotlib omits names that begin with an underscore from legends."""
_PAPER: Final = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "grid.alpha": 0.25,
    "grid.color": INK,
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Appearance of one student, or of the teacher, wherever the page shows it."""

    colour: str
    dashes: str = "-"


TEACHER_LOOK: Final = Look(colour=INK)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line, with the spread of the values that it averages."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    look: Look | None = None
    """None: by the position among the curves."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A row of a dot chart: single values, and their mean with an interval."""

    name: str
    values: Sequence[float]
    mean: float
    low: float | None = None
    high: float | None = None
    look: Look


@dataclass(frozen=True, kw_only=True)
class ClassMarks:
    """A value for each class, (C,), with the half width of its interval."""

    look: Look
    values: NDArray[np.float64]
    half: NDArray[np.float64] | None = None


def look(number: int) -> Look:
    """Colour and dashes of a student by its position: no two of the first 21 are alike."""
    return Look(
        colour=COLOURS[number % len(COLOURS)],
        dashes=_STYLES[number // len(COLOURS) % len(_STYLES)],
    )


def line_chart(
    curves: Sequence[Curve], *, x: str, y: str, percent: bool, on_page: bool = False
) -> str:
    """Lines with bands over a common axis.

    Args:
        curves: the lines, in the order of their looks.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        percent: y are shares of 1.
        on_page: narrow and without a legend, which the page has.
    """
    scale = 100.0 if percent else 1.0
    with drawing(x + y, width=PAGE_WIDTH if on_page else 6.0) as figure:
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            own = curve.look or look(number)
            label = short_name(curve.name)
            axes.plot(curve.x, scale * curve.y, label=label, color=own.colour, linestyle=own.dashes)
            if curve.low is not None and curve.high is not None:
                low, high = scale * curve.low, scale * curve.high
                axes.fill_between(curve.x, low, high, color=own.colour, alpha=0.15, linewidth=0)
        _label(axes, x=x, y=f"{y}, %" if percent else y)
        if x == "epochs":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not on_page:
            axes.legend(fontsize=8)
        return svg(figure)


def dot_chart(rows: Sequence[Dots], *, x: str, zero: bool = False) -> str:
    """A row for each name: its values as dots, their mean as a bar, and the interval as a line.

    Args:
        rows: from top to bottom.
        x: name of the axis.
        zero: draw the line at 0.
    """
    with drawing(x, width=PAGE_WIDTH, height=0.7 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        if zero:
            axes.axvline(0.0, color=INK, linewidth=0.8)
        for place, row in zip(range(len(rows))[::-1], rows, strict=True):
            colour = row.look.colour
            axes.plot(
                row.values, [place] * len(row.values), "o", ms=5, mew=0, color=colour, alpha=0.45
            )
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.5)
            axes.plot([row.mean], [place], "|", ms=13, mew=2.5, color=colour)
            axes.text(
                0.0,
                place + 0.3,
                short_name(row.name),
                transform=axes.get_yaxis_transform(),
                fontsize=9,
                va="center",
            )
        axes.set_ylim(-0.5, len(rows) - 0.35)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        _label(axes, x=x, y="")
        return svg(figure)


def reliability_chart(
    found: Sequence[tuple[Look, Reliability]], *, fewest: Sequence[float]
) -> str | None:
    """Accuracy against confidence; on the diagonal the confidence equals the accuracy.

    Args:
        found: bins of each network.
        fewest: samples that a bin of each network needs to be drawn.

    Returns:
        None where no bin has enough samples.
    """
    enough = [bins.counts >= least for (_, bins), least in zip(found, fewest, strict=True)]
    if not any(shown.any() for shown in enough):
        return None
    with drawing("reliability", width=PAGE_WIDTH) as figure:
        axes = figure.subplots()
        axes.axline((50, 50), slope=1, color=INK, linewidth=0.8, alpha=0.5)
        for (own, bins), shown in zip(found, enough, strict=True):
            x, y = 100 * bins.confidence[shown], 100 * bins.accuracy[shown]
            axes.plot(x, y, marker="o", markersize=4, color=own.colour, linestyle=own.dashes)
        axes.set_xlim(right=101)
        axes.set_ylim(top=101)
        _label(axes, x="confidence, %", y="accuracy, %")
        return svg(figure)


def class_chart(classes: Sequence[str], marks: Sequence[ClassMarks], *, x: str) -> str:
    """A row for each class, with a mark for each network.

    Args:
        classes: names of the classes, from top to bottom.
        marks: values of every class; those that come first are drawn on top.
        x: name of the axis.
    """
    with drawing("classes", width=PAGE_WIDTH, height=0.7 + 0.25 * len(classes)) as figure:
        axes = figure.subplots()
        places = np.arange(len(classes))[::-1]
        if any(own.half is not None for own in marks):  # of differences
            axes.axvline(0.0, color=INK, linewidth=0.8)
        for number, own in reversed(list(enumerate(marks))):
            colour = own.look.colour
            if own.half is not None:
                axes.hlines(places, own.values - own.half, own.values + own.half, color=colour)
            filled = colour if own.half is not None else "none"
            axes.plot(own.values, places, "osD^v<>"[number % 7], ms=5, color=colour, mfc=filled)
        axes.set_yticks(places, [short_name(name, longest=_LONGEST_CLASS) for name in classes])
        axes.set_ylim(-0.6, len(classes) - 0.4)
        _label(axes, x=x, y="")
        return svg(figure)


def histogram_chart(parts: Sequence[tuple[Look, NDArray[np.float64]]], *, x: str) -> str:
    """Counts of numbers, on a logarithmic scale, cut at the extreme thousandths."""
    everything = np.concatenate([values for _, values in parts])
    low, high = np.quantile(everything, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, 61)
    with drawing(x, width=PAGE_WIDTH) as figure:
        axes = figure.subplots()
        for own, values in parts:
            kept = np.clip(values, low, high)
            axes.hist(kept, bins=edges.tolist(), color=own.colour, alpha=0.6)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _label(axes, x=x, y="samples")
        return svg(figure)


def short_name(name: str, *, longest: int = _LONGEST_NAME) -> str:
    """A name that leaves room for the chart, and that a legend does not omit."""
    shown = f"{_JOINER}{name}" if name.startswith("_") else name
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _label(axes: Axes, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True)
    axes.set_axisbelow(True)


@contextmanager
def drawing(salt: str, *, width: float = 6.0, height: float = 3.2) -> Iterator[Figure]:
    """A figure in the project's style, in inches; ``salt`` makes its ids unique in the page."""
    with styles.context({**_PAPER, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if width <= PAGE_WIDTH:  # lines that are as thick in a smaller chart
            rcParams["grid.alpha"] = 0.15
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as an element of a page, in the colour of its text."""
    out = io.StringIO()
    figure.draw_without_rendering()  # a narrower plot has other ticks, which need other room
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return _with_own_ids(text[text.index("<svg") :].replace(INK, "currentColor"))


def _with_own_ids(text: str) -> str:
    """Ids that are unique in the page: matplotlib numbers those of every figure from 1."""
    own = hashlib.sha256(rcParams["svg.hashsalt"].encode()).hexdigest()[:8]
    return _TAG.sub(lambda tag: _ID.sub(rf"\g<1>{own}-", tag[0]), text)
