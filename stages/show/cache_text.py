"""Summary of teacher caches as text."""

from collections.abc import Iterator
from typing import Final

from rich.console import RenderableType
from rich.table import Table

from stages.cache.info import lines
from stages.show.cache import CacheShown, CachesShown, ViewQuality
from stages.show.text import (
    bar,
    facts_table,
    histogram_table,
    of_class,
    plain,
    rendered,
    table,
    with_bars,
)
from stages.text import percent

_MOST_VIEWS: Final = 8
_MOST_CLASSES: Final = 10
_IN_A_TABLE: Final = ("accuracy", "held out", "agreement")
"""Lines of `cache info` that the table of views replaces here."""


def as_text(shown: CachesShown) -> str:
    """Print the summary of all caches."""
    return rendered(block for cache in shown.caches for block in _blocks(cache))


def _blocks(shown: CacheShown) -> Iterator[RenderableType]:
    facts = [(name, value) for name, value in lines(shown.info) if name not in _IN_A_TABLE]
    yield facts_table([*facts, *_calibration(shown)])
    yield _views(shown.views)
    yield _classes(shown)
    if shown.confidence is None:
        yield plain("confidence: not known, the top-k cache has no log-sum-exp at temperature 1")
    else:
        yield histogram_table("confidence where the teacher is right and wrong", shown.confidence)


def _calibration(shown: CacheShown) -> Iterator[tuple[str, str]]:
    found = shown.calibration
    if found is None:
        yield "calibration", "not known, the workspace of the cache has no data set of these images"
        return
    images = "held-out" if found.split == "held_out" else "test"
    samples = "sample" if found.num_rows == 1 else "samples"
    yield (
        "calibration",
        f"error {found.expected_calibration_error:.4f} on {found.num_rows:,} {images} {samples}: "
        f"accuracy {percent(found.accuracy)}, mean confidence {percent(found.mean_confidence)}",
    )


def _views(views: tuple[ViewQuality, ...]) -> Table:
    """List the first views, and the range of the others."""
    shown = views if len(views) <= _MOST_VIEWS else views[: _MOST_VIEWS - 2]
    rows = [
        (
            "clean" if view.view == 0 else str(view.view),
            percent(view.accuracy_training),
            percent(view.accuracy_held_out),
            percent(view.agreement),
        )
        for view in shown
    ]
    others = views[len(shown) :]
    for name, least in (("lowest", min), ("highest", max)) if others else ():
        held_out = [v.accuracy_held_out for v in others if v.accuracy_held_out is not None]
        rows.append(
            (
                f"{name} of {len(others):,} others",
                percent(least(view.accuracy_training for view in others)),
                percent(least(held_out, default=None)),
                percent(least(view.agreement for view in others)),
            )
        )
    return table(("view", "accuracy", "held out", "as clean"), rows)


def _classes(shown: CacheShown) -> Table:
    worst = shown.classes[:_MOST_CLASSES]
    largest = max((one.num_wrong for one in worst), default=0)
    rows = [
        (
            of_class(one.label, one.name),
            f"{one.num_wrong:,}",
            f"{one.num_rows:,}",
            percent(one.num_wrong / max(one.num_rows, 1), digits=1),
            bar(one.num_wrong, largest),
        )
        for one in worst
    ]
    if len(shown.classes) > _MOST_CLASSES:
        rows.append(
            (f"{len(shown.classes) - _MOST_CLASSES:,} more, use --json for all", *("",) * 4)
        )
    return with_bars(("class", "wrong", "of", "share", ""), rows)
