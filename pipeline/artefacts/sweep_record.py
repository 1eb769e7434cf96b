"""The records of a sweep: what its table is of, and chosen.json."""

import json
from typing import Final, Literal, TypeAlias

from pipeline.artefacts.records import Record

FORMAT_VERSION: Final = 1
CONFIDENCE: Final = 0.95

Value: TypeAlias = bool | int | float | str


class SweepRecord(Record):
    """What the table is of."""

    format: Literal["heartcut.sweep"] = "heartcut.sweep"
    version: Literal[1] = FORMAT_VERSION
    name: str
    dataset: str
    metric: str
    """The accuracy by which is chosen: a column."""
    baseline: str
    confidence: float = CONFIDENCE
    seeds: tuple[int, ...]
    points: dict[str, dict[str, Value | None]]
    """Name of each point -> its value on each axis."""


class Measured(Record):
    """An accuracy over seeds."""

    num_seeds: int
    mean: float
    std: float | None


class Gain(Record):
    """Chosen point minus baseline over common seeds."""

    num_pairs: int
    mean: float | None
    low: float | None
    high: float | None


class PointResult(Record):
    """One point on held-out and test images."""

    point: str
    overrides: tuple[str, ...]
    """As for --set."""
    held_out: Measured
    test: Measured


class Chosen(Record):
    """chosen.json"""

    format: Literal["heartcut.sweep.chosen"] = "heartcut.sweep.chosen"
    version: Literal[1] = FORMAT_VERSION
    sweep: str
    metric: str
    confidence: float = CONFIDENCE
    chosen: PointResult
    baseline: PointResult | None
    """None where no run of it succeeded."""
    held_out_gain: Gain | None
    """None where the baseline itself was chosen."""
    test_gain: Gain | None


def shown(value: Value) -> str:
    """A value as in TOML, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)
