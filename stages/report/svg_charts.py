"""Charts as SVG text: readable on light and dark paper, the same bytes for the same numbers."""

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
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.methods.metrics import Reliability

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6bb1")
"""Told apart by the colour-blind (Okabe and Ito 2008), on white and on black."""
_STYLES: Final = ("-", "--", ":")
_TAG: Final = re.compile(r"<[^>]+>")
_ID: Final = re.compile(r'(\bid="|url\(#|xlink:href="#)')
"""Where an id is given or referred to."""
INK: Final = "#0a0b0c"
"""Stands for the colour of the page's text, which is put in its place."""
_LONGEST_NAME: Final = 32
_JOINER: Final = "\u2060"
"""Is not seen; matplotlib leaves names that begin with an underscore out of its legends."""
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
class Curve:
    """One line with the spread of what it is the mean of."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None


def line_chart(curves: Sequence[Curve], *, x: str, y: str, percent: bool) -> str:
    """Lines with bands over a common axis; ``percent``: y are shares of 1."""
    scale = 100.0 if percent else 1.0
    with drawing(x + y) as figure:
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            colour, style = _look(number)
            label = short_name(curve.name)
            axes.plot(curve.x, scale * curve.y, label=label, color=colour, linestyle=style)
            if curve.low is not None and curve.high is not None:
                low, high = scale * curve.low, scale * curve.high
                axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)
        _label(axes, x=x, y=f"{y}, %" if percent else y)
        axes.legend(fontsize=8)
        return svg(figure)


def reliability_chart(found: Sequence[tuple[str, Reliability]]) -> str:
    """Accuracy against confidence; on the diagonal a network is as sure as it may be."""
    with drawing("reliability") as figure:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, alpha=0.5)
        for number, (name, bins) in enumerate(found):
            seen = bins.counts > 0
            told = f"{short_name(name)}, error {100 * bins.error:.1f} %"
            x, y = 100 * bins.confidence[seen], 100 * bins.accuracy[seen]
            colour, style = _look(number)
            axes.plot(x, y, marker="o", markersize=3, label=told, color=colour, linestyle=style)
        _label(axes, x="confidence, %", y="accuracy, %")
        axes.legend(fontsize=8)
        return svg(figure)


def class_chart(classes: Sequence[str], found: Sequence[tuple[str, NDArray[np.float64]]]) -> str:
    """Accuracy of every class, a row each, a mark for each of ``found``."""
    with drawing("classes", height=1.2 + 0.24 * len(classes)) as figure:
        axes = figure.subplots()
        rows = np.arange(len(classes))[::-1]
        for number, (name, shares) in enumerate(found):
            colour = COLOURS[number % len(COLOURS)]
            marker = "os^Dv<>"[number % 7]
            label = short_name(name)
            axes.plot(100 * shares, rows, marker, color=colour, markersize=5, label=label)
        axes.set_yticks(rows, [short_name(name) for name in classes])
        _label(axes, x="accuracy, %", y="")
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
        return svg(figure)


def histogram_chart(parts: Sequence[tuple[str, NDArray[np.float64]]], *, x: str) -> str:
    """Counts of numbers, on a logarithmic scale, cut at the extreme thousandths."""
    everything = np.concatenate([values for _, values in parts])
    low, high = np.quantile(everything, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, 61)
    with drawing(x) as figure:
        axes = figure.subplots()
        for number, (name, values) in enumerate(parts):
            colour = COLOURS[number % len(COLOURS)]
            kept = np.clip(values, low, high)
            axes.hist(kept, bins=edges.tolist(), label=name, color=colour, alpha=0.6)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _label(axes, x=x, y="samples")
        axes.legend(fontsize=8)
        return svg(figure)


def short_name(name: str) -> str:
    """A name that leaves room for the chart, and that the legend does not skip."""
    shown = f"{_JOINER}{name}" if name.startswith("_") else name
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _look(number: int) -> tuple[str, str]:
    """Colour and dashes of a line: no two of the first 21 are alike."""
    return COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]


def _label(axes: Axes, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True)


@contextmanager
def drawing(salt: str, *, height: float = 3.2) -> Iterator[Figure]:
    """A figure of our look; ``salt`` makes its ids differ from those of others in the page."""
    with styles.context({**_PAPER, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(6.0, height), layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as an element of a page, in the colour of its text."""
    out = io.StringIO()
    figure.draw_without_rendering()  # a narrower plot has other ticks, which need other room
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return _with_own_ids(text[text.index("<svg") :].replace(INK, "currentColor"))


def _with_own_ids(text: str) -> str:
    """Ids that no other chart of a page has: matplotlib numbers those of every figure from 1."""
    own = hashlib.sha256(rcParams["svg.hashsalt"].encode()).hexdigest()[:8]
    return _TAG.sub(lambda tag: _ID.sub(rf"\g<1>{own}-", tag[0]), text)
