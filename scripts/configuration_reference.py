"""The configuration as Markdown: one table for each TOML table, from the classes of its settings.

`docs/reference/configuration.md` has a heading for each TOML table and a mark below it, which the
hook of the site replaces: `<!-- keys: select.influence -->`. Defaults and ranges come from the
fields, meanings from their docstrings, examples from `configuration_examples`.
"""

import ast
import inspect
import re
import types
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.fields import FieldInfo

from scripts.cli_reference import cell, code
from scripts.configuration_examples import EXAMPLES, MEANINGS, NEEDED
from stages.config.root import Config
from stages.config.sweep import AxisValue
from stages.config.training import OptimiserConfig
from stages.config.types import Section

MARK = re.compile(r"^<!-- keys: (?P<table>[a-z_.]+) -->$", re.MULTILINE)
TOP, TRAINING = "top", "training"
"""Marks of the keys above all tables, and of those that both trainings share."""
SHARED = ("train_teacher", "train_student")
"""Tables that have the keys of `TRAINING` too."""
LARGE = 2**31
"""A bound from here on is not worth a word."""
TITLES = ("key", "default", "values", "meaning", "example")
WORDS = {
    bool: "`true` or `false`",
    **dict.fromkeys((int, StrictInt), "whole number"),
    **dict.fromkeys((float, StrictFloat), "number"),
    **dict.fromkeys((str, StrictStr), "text"),
    StrictBool: "`true` or `false`",
    Path: "path",
}


def replace_marks(markdown: str) -> str:
    """A page with the keys of each table in place of its mark."""
    return MARK.sub(lambda mark: table_of(mark["table"]), markdown)


def sections() -> dict[str, type[Section]]:
    """Name of each TOML table, or of a mark for shared keys, and the class of its settings."""
    return {TOP: Config, TRAINING: OptimiserConfig, **dict(_below("", Config))}


def _below(prefix: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for key, field in section.model_fields.items():
        kind = field.annotation
        if _is_section(kind):
            name = f"{prefix}{key}"
            yield name, kind
            yield from _below(f"{name}.", kind)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def keys_of(table: str) -> dict[str, FieldInfo]:
    """Keys of a TOML table that are not tables themselves, without shared ones."""
    fields = sections()[table].model_fields
    shared = OptimiserConfig.model_fields if table in SHARED else {}
    return {
        key: field
        for key, field in fields.items()
        if not _is_section(field.annotation) and key not in shared
    }


def table_of(table: str) -> str:
    """Markdown table of the keys of a TOML table."""
    meanings = docstrings(sections()[table])
    rows = []
    for key, field in keys_of(table).items():
        meaning = meanings.get(key) or MEANINGS.get(f"{table}.{key}", "")
        row = (
            f'<span id="{table}.{key}"></span>{code(key)}',
            _default(field),
            values_of(field),
            cell(" ".join(meaning.split())),
            _example(table, key),
        )
        rows.append(row)
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _example(table: str, key: str) -> str:
    """A line of TOML, and what has to be set with it."""
    needed = [f"{one} = {value}" for one, value in NEEDED.get(f"{table}.{key}", {}).items()]
    line = code(f"{key} = {EXAMPLES[table][key]}")
    return f"{line} with {', '.join(map(code, needed))}" if needed else line


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else code(as_toml(value))


def as_toml(value: object) -> str:
    """Write a value as a configuration file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if value < 10_000 else f"{value:_}"
    if isinstance(value, float):
        return str(round(value, 4))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_toml, value))}]"
    return "{}" if value == {} else f'"{value}"'


def values_of(field: FieldInfo) -> str:
    """Admissible values of a key, in words."""
    return _described(field.annotation, field.metadata)


def _described(kind: Any, rules: list[object] | tuple[object, ...] = ()) -> str:
    if kind == AxisValue:
        return "`true`, `false`, number or text"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return WORDS.get(kind) or _described(arguments[0], [*arguments[1:], *rules])
    if origin is Literal:
        return ", ".join(code(as_toml(one)) for one in arguments)
    if origin in (Union, types.UnionType):
        parts = [_described(one) for one in arguments if one is not types.NoneType]
        parts += ["unset"] * (types.NoneType in arguments)
        return ", or ".join(dict.fromkeys(parts))
    if origin is tuple:
        return _described_list(arguments)
    if origin is dict:
        return f"table, each value: {_described(arguments[1])}"
    return WORDS[kind] + _range(rules)


def _described_list(kinds: tuple[Any, ...]) -> str:
    if kinds[-1] is Ellipsis:
        return f"list, each: {_described(kinds[0])}"
    if len(set(kinds)) == 1:
        return f"list of {len(kinds)}, each: {_described(kinds[0])}"
    return f"[{', '.join(map(_described, kinds))}]"


def _range(rules: list[object] | tuple[object, ...]) -> str:
    """Bounds in words, without those that nobody meets."""
    flat = [one for rule in rules for one in getattr(rule, "metadata", [rule])]
    bounds = {type(one): getattr(one, type(one).__name__.lower(), None) for one in flat}
    least, most = bounds.get(Ge), bounds.get(Le)
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    words = {Ge: "from", Gt: "above", Le: "up to", Lt: "below"}
    shown = [f"{words[kind]} {bounds[kind]:,}" for kind in words if _is_met(bounds.get(kind))]
    return f" {' and '.join(shown)}" if shown else ""


def _is_met(bound: float | None) -> bool:
    return bound is not None and bound < LARGE


@cache
def docstrings(section: type[Section]) -> dict[str, str]:
    """Docstring below each field of a class and of the classes that it extends."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if _is_section(kind) and kind is not Section:
            found |= _own_docstrings(kind)
    return found


def _own_docstrings(kind: type) -> dict[str, str]:
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind)))
    body = tree.body[0].body
    return {
        field.target.id: after.value.value
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
