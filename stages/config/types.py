"""Types of the values in a configuration: ranges of numbers, and strict tables."""

from dataclasses import fields
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

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


Seeds: TypeAlias = Annotated[tuple[Seed, ...], AfterValidator(_are_different)]
NamedOverrides: TypeAlias = Annotated[dict[str, tuple[str, ...]], AfterValidator(_have_names)]
"""Table that maps a name to its overrides, as for `--set`."""
Settings = TypeVar("Settings")


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def produce(self, part: type[Settings], /, **others: Any) -> Settings:
        """Build a part's dataclass from this table's fields of the same names, and ``others``."""
        names = [field.name for field in fields(part)]  # type: ignore[arg-type]
        own = {name: getattr(self, name) for name in names if name not in others}
        return part(**own, **others)


def refuse_unused(section: Section, unused: dict[str, bool], *, because: str) -> None:
    """Reject settings that would have no effect, so that a misunderstanding is noticed."""
    for name, is_unused in unused.items():
        if is_unused and name in section.model_fields_set:
            raise ValueError(f"{name} has no effect with {because}; remove it")
