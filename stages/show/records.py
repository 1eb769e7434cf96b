"""Parts that the summaries of `show` share: histograms, names of classes, JSON.

Every summary is a frozen record of finite numbers, so its JSON has no NaN. Unknown values are null.
"""

import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.records import Record


class Histogram(Record):
    """Numbers of samples by value, separately for those that the teacher gets right and wrong."""

    edges: tuple[float, ...]
    """Edges of B bins, B + 1; values beyond are counted in the first and the last bin."""
    right: tuple[int, ...]
    wrong: tuple[int, ...]


def histogram(
    values: NDArray[np.floating], right: NDArray[np.bool_], edges: NDArray[np.float64]
) -> Histogram:
    """Count ``values`` between ``edges``; ``right``: the teacher is right; (N,) each."""
    kept = np.clip(values, edges[0], edges[-1])
    return Histogram(
        edges=tuple(edges.tolist()),
        right=tuple(np.histogram(kept[right], edges)[0].tolist()),
        wrong=tuple(np.histogram(kept[~right], edges)[0].tolist()),
    )


def number(value: object) -> float | None:
    """Read a float of a table; None if it is missing or not a number."""
    found = float(value) if isinstance(value, int | float | np.floating | np.integer) else math.nan
    return found if math.isfinite(found) else None


def name_of(label: int, names: Sequence[str]) -> str | None:
    """Find the name of a class; None if it is not known."""
    return names[label] if 0 <= label < len(names) else None


def as_json(record: Record) -> str:
    """Write one JSON document: keys in the order of the fields, numbers unrounded, no NaN."""
    return json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False)
