"""What the tables of a configuration are made of: ranges of numbers, and strict tables."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

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


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refuse_unused(section: Section, unused: dict[str, bool], *, because: str) -> None:
    """A setting that would change nothing is a misunderstanding; say so."""
    for name, is_unused in unused.items():
        if is_unused and name in section.model_fields_set:
            raise ValueError(f"{name} has no effect with {because}; remove it")
