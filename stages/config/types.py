"""Types of the values in a configuration: ranges of numbers, names, paths, and strict tables."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
)

from stages.config.homes import place_with_home, with_home

OpenUnit: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
PositiveShare: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Triple: TypeAlias = tuple[float, float, float]
ClassOfTeacher: TypeAlias = Annotated[StrictInt, Field(ge=0)] | StrictStr
PrecisionChoice: TypeAlias = Literal["auto", "bf16", "fp32"]
TrainingPrecision: TypeAlias = Literal["auto", "bf16", "fp16", "fp32", "fp64"]


def _are_different(seeds: tuple[Seed, ...]) -> tuple[Seed, ...]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{list(seeds)} must be one or more different numbers")
    return seeds


def _have_names(rows: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for name in rows:
        if not name.strip() or not name.isprintable() or "|" in name:
            raise ValueError(f"{name!r} is not a valid name (expected printable text without |)")
    return rows


class UnfitValueError(ValueError):
    """Error of one value, in pydantic's words; the message adds the key and the value."""


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
"""Names that no file on a Windows server can have."""


def _is_a_name(name: str) -> str:
    if _DEVICES.fullmatch(name):
        raise UnfitValueError("input should not be a name that Windows reserves")
    if not _NAME.fullmatch(name):
        raise UnfitValueError(
            'input should be a name of up to 64 letters, digits, ".", "_" and "-" that begins with '
            'a letter or a digit and does not end in "."; rename the folders of finished runs too',
        )
    return name


def _is_a_name_or_empty(name: str) -> str:
    return _is_a_name(name) if name else name


Name: TypeAlias = Annotated[str, AfterValidator(_is_a_name)]
"""Name of a file or folder that is written below the workspace."""
NameOrEmpty: TypeAlias = Annotated[str, AfterValidator(_is_a_name_or_empty)]
UserPath: TypeAlias = Annotated[Path, AfterValidator(with_home)]
"""Path of a file or folder; `~` is the home."""
Place: TypeAlias = Annotated[str, AfterValidator(place_with_home)]
"""Folder, in which `~` is the home, or address."""
Seeds: TypeAlias = Annotated[tuple[Seed, ...], AfterValidator(_are_different)]
NamedOverrides: TypeAlias = Annotated[dict[str, tuple[str, ...]], AfterValidator(_have_names)]
"""Table that maps a name to its overrides, as for `--set`."""
Settings = TypeVar("Settings")


class Unquoted(str):
    """Text of an override that is not a TOML value, such as .05 or True; pydantic converts it."""


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_type(cls, value: object, info: ValidationInfo) -> object:
        """Reject a number in quotes and `true` for a number, which pydantic would convert."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)  # type: ignore[arg-type]
        if kinds and kinds <= {int, float, bool}:
            values = value if isinstance(value, list | tuple) else [value]
            quoted = [one for one in values if isinstance(one, str) and type(one) is not Unquoted]
            if any(map(_is_number_or_flag, quoted)):
                raise UnfitValueError("input should have no quotes; remove them")
            if bool not in kinds and any(isinstance(one, bool) for one in values):
                raise UnfitValueError("input should be a number")
        return value

    def produce(self, part: type[Settings], /, **others: Any) -> Settings:
        """Build a part's dataclass from this table's fields of the same names, and ``others``."""
        names = [field.name for field in fields(part)]  # type: ignore[arg-type]
        own = {name: getattr(self, name) for name in names if name not in others}
        return part(**own, **others)


@cache
def _kinds(annotation: object) -> frozenset[object]:
    """Types that a field accepts, without None and choices of words; a tuple's are its items'."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType, tuple):
        parts = [one for one in get_args(annotation) if one not in (type(None), ...)]
        return frozenset().union(*map(_kinds, parts))
    if get_origin(annotation) is Literal:
        return frozenset(type(one) for one in get_args(annotation) if not isinstance(one, str))
    return frozenset({annotation})


def _is_number_or_flag(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def refuse_unused(section: Section, unused: dict[str, bool], *, because: str) -> None:
    """Reject settings that would have no effect, so that a misunderstanding is noticed."""
    for name, is_unused in unused.items():
        if is_unused and name in section.model_fields_set:
            raise ValueError(f"{name} has no effect with {because}; remove it")
