"""``[model]`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from offramp.training.fields import Section
from offramp.training.models.networks import BACKBONES


class BottleneckRecipe(Section):
    """The code that is sent in place of the activation: its channels and stride, the width of its layers.

    ``growth``: how many times as wide as the one before each further layer of the encoder is.
    ``exit_behind``: the early exit sees the encoder's last layer but one in place of the activation.
    ``density``: what training charges for the code: static tables for each channel, or the context coder.
    """

    channels: Annotated[int, Field(ge=1, le=256)]
    stride: Literal[1, 2, 4, 8] = 2
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    growth: Literal[1, 2] = 1
    exit_behind: bool = True
    density: Literal["channel", "context"] = "channel"


class ModelRecipe(Section):
    """Backbone by name and the number of the exit, which is also where the model is split."""

    backbone: str
    exit: Annotated[int, Field(ge=1)]
    bottleneck: BottleneckRecipe | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_exit(cls, values: Any) -> Any:
        if isinstance(values, dict) and "exits" in values:
            raise PydanticCustomError(
                "several_exits",
                "exits: `offramp train` makes one early exit; expected exit = 12, or several by "
                "`offramp split {backbone} --cuts blocks.5 blocks.12`",
                {"backbone": str(values.get("backbone"))},
            )
        return values

    @field_validator("backbone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BACKBONES:
            raise ValueError(f"unknown {value!r}, use one of {', '.join(sorted(BACKBONES))}")
        return value
