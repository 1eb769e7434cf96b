"""Layout of `show`: facts, tables, bars and curves for a terminal, or plain text for a pipe.

Text from files is never markup: it is printed as it is, with control characters as escapes.
"""

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.artefacts.records import printable
from stages.show.records import Histogram

Facts: TypeAlias = Sequence[tuple[str, str]]
Cells: TypeAlias = Sequence[str]

NARROW: Final = 80
"""Columns without a terminal."""
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII: Final = " .:-=+*%#"


def rendered(blocks: Iterable[RenderableType]) -> str:
    """Render ``blocks`` with an empty line between two; no escape codes without a terminal."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((NARROW, 24)).columns
    console = Console(
        file=io.StringIO(),
        width=max(width, 40),
        force_terminal=is_terminal,
        color_system="auto" if is_terminal else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    parts = []
    for block in blocks:
        with console.capture() as capture:
            console.print(block)
        parts.append("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))
    return _encodable("\n\n".join(parts))


def _encodable(text: str) -> str:
    """Replace blocks and signs in ``text`` for a terminal without Unicode."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = str.maketrans({**dict(zip(_BLOCKS, _ASCII, strict=True)), "─": "-", "±": "~"})
        return text.translate(plain).encode(encoding, "backslashreplace").decode(encoding)
    return text


def plain(text: str) -> Text:
    """Make printable text without markup or control characters."""
    return Text(printable(text), overflow="fold")


def title(text: str) -> Text:
    """Make a heading."""
    return Text(printable(text), style="bold")


def facts_table(facts: Facts) -> Table:
    """List names and values; long values continue on the next line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(plain(name), plain(value))
    return grid


def table(header: Cells, rows: Sequence[Cells], *, left: int = 1, heading: str = "") -> Table:
    """Make a table whose first ``left`` columns are text, and the others numbers."""
    found = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title(heading) if heading else None,
        title_justify="left",
    )
    for number, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        found.add_column(plain(name), justify=justify, overflow="fold")
    for row in rows:
        found.add_row(*(plain(cell) for cell in row))
    return found


def histogram_table(heading: str, found: Histogram, *, threshold: float | None = None) -> Table:
    """Draw two bars per bin, each relative to its own largest; mark 0 and the threshold."""
    most_right, most_wrong = max(found.right), max(found.wrong)
    rows = []
    for low, high, right, wrong in zip(
        found.edges[:-1], found.edges[1:], found.right, found.wrong, strict=True
    ):
        marks = ["0"] if low == 0 < high and found.edges[0] < 0 else []
        is_marked = threshold is not None and threshold != 0 and low <= threshold < high
        marks += [f"threshold {threshold:g}"] if is_marked else []
        marks += ["threshold"] if threshold == 0 == low else []
        rows.append(
            (
                f"{low:+.2g}" if found.edges[0] < 0 else f"{low:.2g}",
                f"{right:,}",
                bar(right, most_right, width=18),
                f"{wrong:,}",
                bar(wrong, most_wrong, width=18),
                "" if not marks else f"<- {', '.join(marks)}",
            )
        )
    return with_bars(("from", "right", "", "wrong", "", ""), rows, left=0, heading=heading)


def with_bars(header: Cells, rows: Sequence[Cells], *, left: int = 1, heading: str = "") -> Table:
    """Make a table whose columns without a name are bars and marks."""
    found = table(header, rows, left=left, heading=heading)
    for name, column in zip(header, found.columns, strict=True):
        if not name:
            column.justify, column.no_wrap = "left", True
    return found


def bar(value: float, largest: float, *, width: int = 24) -> str:
    """Draw a bar of ``value`` relative to ``largest``; any value above 0 is visible."""
    if value <= 0 or largest <= 0:
        return ""
    return "█" * max(1, round(width * min(value / largest, 1.0)))


def curve(values: Sequence[float | None], *, width: int = 40) -> str:
    """Draw numbers as blocks, from the least to the largest; means if there are many."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if len(numbers) > width:
        numbers = np.array([part.mean() for part in np.array_split(numbers, width)])
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return ""
    low, span = known.min(), known.max() - known.min()
    heights = np.full(len(numbers), 4.0) if span <= 0 else 1 + np.round(7 * (numbers - low) / span)
    heights = np.where(np.isfinite(numbers), heights, 0)
    return "".join(_BLOCKS[int(height)] for height in heights)


def of_class(label: int, name: str | None) -> str:
    """Name a class by number and, if it is known and different, by name."""
    return str(label) if name is None or name == str(label) else f"{label} {name}"
