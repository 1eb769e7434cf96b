"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

A terminal shows one bar at a time, and log lines appear above it. A log file or a second rank gets
a line every ten seconds at first and fewer later, so long work neither looks stuck nor fills a log.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

logger = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0
_MOST_SECONDS = 300.0
_SHARE_OF_ELAPSED = 0.05
"""Time between lines of long work, as a share of the time that it has taken so far."""
_ONE_BAR = threading.Lock()
_named: str = ""
"""The run that all work belongs to, for its descriptions."""
_shown: "Bars | None" = None
"""The bar on the terminal; `_ONE_BAR` is held while there is one."""


class Progress(Protocol):
    """A counter of finished work."""

    def advance(self, count: int, *, note: str = "") -> None:
        """Count finished units; ``note`` names the part at work."""

    def skip(self, count: int) -> None:
        """Leave units out that need no work, so that they do not change the rate."""


@contextmanager
def progress(description: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show how far ``total`` units of work are; close the bar however the work ends.

    ``done`` units were finished before: they count as work, but not for the rate.
    Work inside other work that has a bar gets lines: a terminal shows one bar at a time.
    """
    is_shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    if is_shown and _ONE_BAR.acquire(blocking=False):
        try:
            with _bar(description, total=total, unit=unit, done=done) as bar:
                yield bar
        finally:
            _ONE_BAR.release()
    else:
        if _named:  # a bar stands below the line that names the run, and has little room
            description = f"{_named}: {description}"
        yield _Lines(description=description, total=total, unit=unit, done=done, before=done)


@contextmanager
def naming(run: str) -> Iterator[None]:
    """Begin the log lines of all work inside with the name of a run, one of several."""
    global _named
    before, _named = _named, run
    try:
        yield
    finally:
        _named = before


def write_above_bar(line: str) -> bool:
    """Write a line above the bar on the terminal; False without a bar, and nothing is written."""
    bars = _shown
    if bars is None:
        return False
    bars.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    return True


@contextmanager
def _bar(description: str, *, total: int, unit: str, done: int) -> Iterator[Progress]:
    global _shown
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    # The bar takes what the other columns leave: a line that wraps could not be removed.
    columns = (
        rich.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        rich.BarColumn(bar_width=None, table_column=Column(ratio=1)),
        rich.TextColumn(
            "{task.completed:,.0f}/{task.total:,.0f}", table_column=Column(no_wrap=True)
        ),
        _rate_column(unit),
        rich.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        rich.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
    )
    console = Console(stderr=True)
    with rich.Progress(*columns, console=console, transient=True, expand=True) as bars:
        task = bars.add_task(description, total=total, completed=done, note="")
        left_out = 0

        class Bar:
            def advance(self, count: int, *, note: str = "") -> None:
                bars.update(task, advance=count, note=note)

            def skip(self, count: int) -> None:
                nonlocal left_out
                left_out += count
                bars.update(task, total=total - left_out)

        _shown = bars
        try:
            yield Bar()
        finally:
            _shown = None


def per_second(rate: float) -> str:
    """Format a rate with two digits at least: 1,234 or 12 or 0.037."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"


def _rate_column(unit: str) -> "ProgressColumn":
    """A rich column that shows units per second."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{per_second(task.speed)} {unit}/s")

    return Rate(table_column=Column(no_wrap=True))


@dataclass
class _Lines:
    description: str
    total: int
    unit: str
    done: int = 0
    before: int = 0
    """Units finished before this work began."""
    started: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)

    def advance(self, count: int, *, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        elapsed = now - self.started
        if now - self.logged < self._seconds_between(elapsed):
            return
        self.logged = now
        rate = (self.done - self.before) / max(elapsed, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        logger.info(
            "%s: %s of %s %s, %s %s/s, %.0f s left%s",
            self.description,
            f"{self.done:,}",
            f"{self.total:,}",
            self.unit,
            per_second(rate),
            self.unit,
            left,
            f", {note}" if note else "",
        )

    def skip(self, count: int) -> None:
        self.total -= count

    def _seconds_between(self, elapsed: float) -> float:
        """Time from one line to the next: about 80 lines in the first hour, 12 in a later one."""
        return max(LINE_EVERY_SECONDS, min(_SHARE_OF_ELAPSED * elapsed, _MOST_SECONDS))
