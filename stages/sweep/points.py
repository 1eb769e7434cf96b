"""Points of a sweep: named ones and a grid, each a configuration that is checked first."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.artefacts.sweep import Value, shown
from pipeline.errors import ConfigError
from pipeline.provenance import identity
from stages.config.file import with_overrides
from stages.config.root import Config

UNSET = "unset"
_SHARED = ("workspace", "caches", "share", "prepare", "compare", "sweep")
_KEPT_KEYS = {
    **dict.fromkeys(_SHARED, "one sweep has one data set and one workspace"),
    "train_student.seed": "`sweep.seeds` has the seeds",
    "select.name": "several tables cannot have one name",
}
"""Keys that no point may set, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One complete configuration of a sweep."""

    name: str
    values: Mapping[str, Value]
    """Values on the axes; empty for a named point."""
    overrides: tuple[str, ...]
    config: Config | None
    """None: rejected."""
    refusal: str = ""
    """Reason, in one line."""

    @property
    def known_values(self) -> dict[str, Value | None]:
        """Values on the axes; None where the key is removed."""
        return {key: None if value == UNSET else value for key, value in self.values.items()}


def sweep_points(config: Config) -> list[Point]:
    """List every point: the named ones, then the grid with the last axis fastest.

    A point may be rejected, for example where an axis has no effect with another's value.

    Raises:
        ConfigError: if there is no point, all are rejected, a key is unknown or must not be set by
            a point, or two points are the same.
    """
    if not config.sweep.axes and not config.sweep.points:
        raise ConfigError(
            "sweep has no axes and no points: nothing is varied (expected [sweep.axes] or "
            "[sweep.points]). Add one, see docs/sweeps.md."
        )
    if config.select.name:
        raise ConfigError(
            f"select.name is {config.select.name!r}: {_KEPT_KEYS['select.name']} (expected none). "
            "Remove it, or pass --set select.name=unset."
        )
    points = [*_named(config), *_grid(config)]
    _require_different(points)
    if all(point.config is None for point in points):
        raise ConfigError(f"every point of the sweep is rejected, {_rejected(points[0])}")
    return points


def baseline_of(config: Config, points: list[Point]) -> Point:
    """Find the point that all others are compared with.

    Raises:
        ConfigError: if no point or several points match, or it is rejected.
    """
    wanted = config.sweep.baseline
    if not wanted:
        found = points[:1]
    elif isinstance(wanted, str):
        found = [point for point in points if point.name == wanted]
    else:
        found = [p for p in points if p.values and wanted.items() <= p.values.items()]
    if len(found) != 1:
        raise ConfigError(
            f"sweep.baseline is {wanted!r}: {len(found)} points have it (expected 1 of "
            f"{', '.join(point.name for point in points)}). Name one of them."
        )
    if found[0].config is None:
        raise ConfigError(
            f"the baseline of the sweep is rejected, {_rejected(found[0])} "
            "Set another `sweep.baseline`."
        )
    return found[0]


def settings_id(config: Config) -> str:
    """Hash all settings that the runs of a configuration depend on, and more."""
    settings = config.model_dump(mode="json", exclude={"workspace", "sweep", "compare"})
    return identity("sweep_settings", settings)


def with_seed(config: Config, seed: int) -> Config:
    """Change the seed of the student."""
    return with_overrides(config, [f"train_student.seed={seed}"])


def _named(config: Config) -> Iterator[Point]:
    for name, overrides in config.sweep.points.items():
        yield _point(config, name=name, values={}, overrides=overrides)


def _grid(config: Config) -> Iterator[Point]:
    axes = config.sweep.axes
    if not axes:
        return
    ends = Counter(key.rpartition(".")[2] for key in axes)
    labels = {key: end for key in axes if ends[end := key.rpartition(".")[2]] == 1}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        yield _point(
            config,
            name=" ".join(
                f"{labels.get(key, key)}={shown(value)}" for key, value in values.items()
            ),
            values=values,
            overrides=tuple(_override(key, value) for key, value in values.items()),
        )


def _override(key: str, value: Value) -> str:
    return f"{key}={UNSET if value == UNSET else json.dumps(value, ensure_ascii=False)}"


def _point(
    config: Config, *, name: str, values: Mapping[str, Value], overrides: tuple[str, ...]
) -> Point:
    for override in overrides:
        _require_its_own(name, override.partition("=")[0].strip().replace("-", "_"))
    try:
        made, refusal = with_overrides(config, overrides), ""
    except ConfigError as error:
        if not _is_about_values(error):
            raise ConfigError(f"sweep point {name}: {_text(error)}") from error
        made, refusal = None, _text(error)
    return Point(name=name, values=values, overrides=overrides, config=made, refusal=refusal)


def _require_its_own(name: str, key: str) -> None:
    for kept, reason in _KEPT_KEYS.items():
        if f"{key}.".startswith(f"{kept}."):
            raise ConfigError(
                f"sweep point {name} sets {key}: {reason} (expected other keys). Remove it from "
                "the point, or set it for all."
            )


def _is_about_values(error: ConfigError) -> bool:
    """Return False for an unknown key, or text that is not an override: these are typing errors."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return False
    return all(problem["type"] != "extra_forbidden" for problem in cause.errors())


def _text(error: ConfigError) -> str:
    return str(error).removeprefix("overrides: ")


def _rejected(point: Point) -> str:
    return f"{point.name}: {point.refusal}"


def _require_different(points: list[Point]) -> None:
    """Reject one configuration under two names: it would be one set of runs that looks like two."""
    names: set[str] = set()
    by_settings: dict[str, str] = {}
    for point in points:
        if point.name in names:
            raise ConfigError(f"sweep has two points {point.name} (expected one). Remove one.")
        names.add(point.name)
        if point.config is None:
            continue
        same = by_settings.setdefault(settings_id(point.config), point.name)
        if same != point.name:
            raise ConfigError(
                f"sweep points {same} and {point.name} are the same configuration (expected "
                "different ones). Remove one."
            )
