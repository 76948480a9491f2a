"""What all sections of the settings have in common, and the types that several of them use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MAX_ITERATIONS = 99  # Dagster stops tracking staleness over 100 upstream partitions


class Section(BaseModel):
    """A group of settings. Unknown names are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1; in a settings file it is a slip."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("Input should not be true or false")
        return value


def _ordered(words: tuple[int, int]) -> tuple[int, int]:
    if words[0] > words[1]:
        raise ValueError("the first number should not exceed the second")
    return words


Text = Annotated[str, Field(min_length=1)]


Probability = Annotated[float, Field(gt=0.0, le=1.0)]


Score = Annotated[float, Field(ge=0.0, le=10.0)]


Share = Annotated[float, Field(ge=0.0, le=1.0)]


Phrase = Annotated[str, Field(min_length=1, pattern=r"\S")]


WordCount = Annotated[int, Field(ge=0, strict=True)]


WordRange = Annotated[tuple[WordCount, WordCount], AfterValidator(_ordered)]
