"""The knobs of `sweep`: what is varied, how often it is repeated, and what is chosen by."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from stages.config.types import NamedOverrides, Section, Seeds

AxisValue: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
Metric: TypeAlias = Literal["mean-of-last", "last", "best"]


class SweepConfig(Section):
    """The student under every point and seed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "sweep"
    """Of the folder of results below `sweeps` in the workspace."""
    seeds: Seeds = (0,)
    axes: dict[str, tuple[AxisValue, ...]] = Field(default_factory=dict)
    """Dotted key -> its values; every combination is a point. "unset" takes the key out."""
    points: NamedOverrides = Field(default_factory=dict)
    """Name of each further point -> its overrides, as for --set; they come first."""
    baseline: str | dict[str, AxisValue] = ""
    """Point that all are compared with: its name, or values that only it has; empty: the first."""
    metric: Metric = "mean-of-last"
    """Accuracy on held-out images by which a point is chosen."""

    @field_validator("axes", mode="before")
    @classmethod
    def _are_lists_of_values(cls, value: object) -> object:
        """`select.eta = [...]` without quotes is a table within a table in TOML."""
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
    """Dotted keys of all values in a table of tables."""
    for key, value in tree.items():
        dotted = prefix + key.replace("-", "_")
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{dotted}.")
        else:
            yield dotted, value
