"""Settings of `sweep`: the varied keys, the seeds, and the metric that chooses a point."""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from stages.config.types import Name, NamedOverrides, Section, Seeds

AxisValue: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
Metric: TypeAlias = Literal["mean-of-last", "last", "best"]


class SweepConfig(Section):
    """Settings of `heartcut sweep`, which trains the student at every point with every seed."""

    name: Name = "sweep"
    """Name of the folder of results below `sweeps` in the workspace.

    Up to 64 letters, digits, ".", "_" and "-"."""
    seeds: Seeds = (0,)
    """Seeds that every point is trained with; one run each.

    At least one, and no seed twice."""
    axes: dict[str, tuple[AxisValue, ...]] = Field(default_factory=dict)
    """Table of varied keys: a dotted key maps to a list of its values.

    Every combination of values is a point. The value "unset" removes the key. Empty, only `points`
    are trained."""
    points: NamedOverrides = Field(default_factory=dict)
    """Table of further points: a name maps to a list of overrides, each as for `--set`.

    They come before the points of `axes`."""
    baseline: str | dict[str, AxisValue] = ""
    """Point that the others are compared with: its name, or a table of values that only it has.

    Empty, it is the first point."""
    metric: Metric = "mean-of-last"
    """Held-out accuracy that a point is chosen by.

    "mean-of-last" is the mean over the last epochs (`mean_of_last`), "last" that of the last epoch,
    "best" the highest of all epochs."""

    @field_validator("axes", mode="before")
    @classmethod
    def _are_lists_of_values(cls, value: object) -> object:
        """Accept `select.eta = [...]` without quotes, which TOML reads as a nested table."""
        if not isinstance(value, Mapping):
            return value
        axes = dict(_dotted(value))
        for key, values in axes.items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"{key} is {values!r} (expected a list of values)")
            if not values:
                raise ValueError(f"{key} is an empty list (expected one or more values)")
            for one in values:
                if not isinstance(one, bool | int | float | str):
                    raise ValueError(
                        f"{key} has {one!r} (expected numbers, strings, true or false; points "
                        "take any override)"
                    )
        return axes

    @field_validator("baseline", mode="before")
    @classmethod
    def _is_a_name_or_values(cls, value: object) -> object:
        return dict(_dotted(value)) if isinstance(value, Mapping) else value


def _dotted(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the value of every value in a table of tables."""
    for key, value in tree.items():
        dotted = prefix + key.replace("-", "_")
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{dotted}.")
        else:
            yield dotted, value
