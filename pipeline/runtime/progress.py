"""Progress of long work: a bar with rate and ETA on a terminal, plain lines elsewhere.

A log file or a second rank gets a line every ten seconds at most, so nothing waits in silence and
nothing fills a log.
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
    from rich.progress import ProgressColumn

logger = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0
_ONE_BAR = threading.Lock()


class Progress(Protocol):
    """Something that is told how much more was done."""

    def advance(self, count: int, *, note: str = "") -> None: ...


@contextmanager
def progress(description: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show how far ``total`` units of work are; close the bar however the work ends.

    ``done`` of them were done before: they count as work, and not for the rate.
    Work inside of work that has a bar gets lines: a terminal shows one bar at a time.
    """
    is_shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    if is_shown and _ONE_BAR.acquire(blocking=False):
        try:
            with _bar(description, total=total, unit=unit, done=done) as bar:
                yield bar
        finally:
            _ONE_BAR.release()
    else:
        yield _Lines(description=description, total=total, unit=unit, done=done, before=done)


@contextmanager
def _bar(description: str, *, total: int, unit: str, done: int) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        _rate_column(unit),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total, completed=done, note="")

        class Bar:
            def advance(self, count: int, *, note: str = "") -> None:
                bars.update(task, advance=count, note=note)

        yield Bar()


def _rate_column(unit: str) -> "ProgressColumn":
    """A rich column that shows units per second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} {unit}/s")

    return Rate()


@dataclass
class _Lines:
    description: str
    total: int
    unit: str
    done: int = 0
    before: int = 0
    """Done before this work began."""
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def advance(self, count: int, *, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told < LINE_EVERY_SECONDS:
            return
        self.told = now
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        logger.info(
            "%s: %s of %s %s, %s %s/s, %.0f s left%s",
            self.description,
            f"{self.done:,}",
            f"{self.total:,}",
            self.unit,
            f"{rate:,.0f}",
            self.unit,
            left,
            f", {note}" if note else "",
        )
