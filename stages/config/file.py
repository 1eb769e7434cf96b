"""Reading a configuration: a TOML file, ``table.key=value`` overrides, one line per mistake."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import ArtefactNotFound, ConfigError
from pipeline.provenance import text_of
from stages.config.root import Config
from stages.config.types import UnfitValueError, Unquoted


def load_config(path: Path, *, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file, apply ``table.key=value`` overrides, and check all settings.

    Raises:
        ArtefactNotFound: if the file does not exist.
        ConfigError: naming the key, what was found and what was expected.
    """
    try:
        tree = _read_toml(path)
    except FileNotFoundError as error:
        raise ArtefactNotFound(
            f"{path} does not exist. Pass a configuration file, for example configs/digits.toml."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Pass a configuration file."
        ) from error
    applied = tuple(overrides)
    for override in applied:
        _apply_override(tree, override)
    config = config_from_tree(tree, origin=str(path))
    config.read_from(str(path), applied)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = text_of(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Save it as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Fix that line.") from error


def config_from_tree(tree: dict[str, Any], *, origin: str) -> Config:
    """Check a parsed configuration; errors name ``origin``."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error)}") from error


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return ``config`` with ``table.key=value`` overrides."""
    tree = config.model_dump(mode="python", exclude_unset=True)
    applied = tuple(overrides)
    for override in applied:
        _apply_override(tree, override)
    changed = config_from_tree(tree, origin="overrides")
    changed.with_origin_of(config, applied)
    return changed


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = [part.strip().replace("-", "_") for part in name.split(".")]
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override} is not an override (expected table.key=value, for example "
            "--set select.eta=0.7)."
        )
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {key} is a value (expected a table).")
    if text.strip() == "unset":
        tree.pop(keys[-1], None)
    else:
        tree[keys[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    """Parse a TOML value; other text is a string, so quotes can be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return Unquoted(text)


def _first_problem(error: ValidationError) -> str:
    """Describe the first wrong key in one line."""
    problems = error.errors()
    first = problems[0]
    place = _place(first["loc"])
    same_place = [problem for problem in problems if _place(problem["loc"]) == place]
    others = len(problems) - len(same_place)
    more = f" ({others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {place}{_did_you_mean(first['loc'])}.{more}"
    if first["type"] == "value_error" and not isinstance(_cause(first), UnfitValueError):
        message = first["msg"].removeprefix("Value error, ")
        return f"{place + ': ' if place else ''}{message}.{more}"
    messages = [problem["msg"].removeprefix("Value error, ") for problem in same_place]
    wanted = " or ".join(dict.fromkeys(text[:1].lower() + text[1:] for text in messages))
    return f"{place} is {first['input']!r}: {wanted}.{more}"


def _cause(problem: Mapping[str, Any]) -> object:
    return problem.get("ctx", {}).get("error")


def _place(location: tuple[str | int, ...]) -> str:
    """Dotted key of an error, without pydantic's tags for the members of a union."""
    tags = ("int", "float", "str", "constrained", "literal", "path")
    return ".".join(
        str(p) for p in location if not str(p).split("[")[0].startswith(tags) or p in _KEYS
    )


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (expected one of {', '.join(known)})"


_KEYS = frozenset(Config.model_fields) | {"path", "strategy", "name"}
"""Keys that look like such a tag."""
