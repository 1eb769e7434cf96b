"""Numbers and tables as text: per cent, differences, durations, counts, columns."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final, Literal

_LEAST_NAME: Final = 8
"""Columns that wrapped names have at least."""


def percent(share: float | None, *, digits: int = 2) -> str:
    """Format a share in per cent; a dash if it is not known."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def percent_over_seeds(
    mean: float | None, std: float | None, *, unit: str = " %", unknown: str = "-"
) -> str:
    """Format mean and standard deviation in per cent; for one seed only the mean."""
    if mean is None:
        return unknown
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}") + unit


def percentage_points(
    mean: float, low: float | None, high: float | None, *, plus: Literal["+", ""] = "+"
) -> str:
    """Format a difference of shares in points, with its interval if there is one.

    ``plus``: sign of positive ends of the interval; none saves room in a terminal.
    """
    difference = f"{100 * mean:+.2f}"
    if low is None or high is None:
        return difference
    return f"{difference} [{100 * low:{plus}.2f}, {100 * high:{plus}.2f}]"


def decimal(value: float | None, form: str) -> str:
    """Format a number; a dash if it is not known."""
    return "-" if value is None else format(value, form)


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: `1 run`, `2,000 runs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def text_table(rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Lay out rows as columns, two spaces apart.

    A ``width`` makes long names in the first column continue on the next line.
    """
    if width is not None:
        rows = list(_wrapped(rows, width))
    return "\n".join("  ".join(cells).rstrip() for cells in _padded(rows))


def _wrapped(rows: Sequence[Sequence[str]], width: int) -> Iterator[Sequence[str]]:
    room = max(width - sum(other + 2 for other in _widths(rows)[1:]), _LEAST_NAME)
    for name, *others in rows:
        first, *more = textwrap.wrap(name, room, subsequent_indent="  ") or [""]
        yield first, *others
        yield from ((part, *("" for _ in others)) for part in more)


def markdown_table(rows: Sequence[Sequence[str]], *, aligned: bool = True) -> str:
    """Lay out rows as a Markdown table whose first row is the header.

    Aligned columns are for readers of the text; a rendered page does not need them.
    """
    if not aligned:
        rule = "|" + "---|" * len(rows[0])
        header, *others = (_between_bars(cells) for cells in rows)
    else:
        header, *others = (_between_bars(cells) for cells in _padded(rows))
        rule = "|" + "|".join("-" * (width + 2) for width in _widths(rows)) + "|"
    return "\n".join([header, rule, *others])


def _between_bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _padded(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Pad every cell to the width of its column."""
    widths = _widths(rows)
    for row in rows:
        yield [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
