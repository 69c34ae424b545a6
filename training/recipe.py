"""A recipe: one TOML file that says all of how a bundle comes to be. Unknown or missing fields are errors."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from offramp.common.errors import ConfigError
from offramp.training.data import SOURCES
from offramp.training.models import BACKBONES

Stage = Literal["base", "exit", "regularised"]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataRecipe(_Strict):
    """What is learned from: source, shares held out, and augmentation (pixels of shift, mirroring)."""

    source: str
    validation: Share
    test: Share
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, SOURCES)


class ModelRecipe(_Strict):
    """Backbone by name and the number of the exit, which is also where the model is split."""

    backbone: str
    exit: Annotated[int, Field(ge=1)]

    @field_validator("backbone")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, BACKBONES)


class StageRecipe(_Strict):
    """One training stage; the learning rate falls from this value to 0 along half a cosine."""

    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]


class RegularisedRecipe(StageRecipe):
    """The last stage: lambda_e and N_b of Eq. (3), lambda_s of Eq. (6)."""

    entropy: Weight = 0.0
    sparsity: Weight = 0.0
    bins: Annotated[int, Field(ge=2)] = 256


class TrainRecipe(_Strict):
    """The schedule of Sec. V: base, then with the early exit, then with the regulariser."""

    batch_size: Annotated[int, Field(ge=2)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    rho: list[Weight] | None = None
    base: StageRecipe
    exit: StageRecipe
    regularised: RegularisedRecipe


class QuantizeRecipe(_Strict):
    """Post-training quantization: share of the validation images that calibrates it."""

    calibration: Annotated[float, Field(gt=0, le=1)] = 0.25


class ThresholdRecipe(_Strict):
    """The default T_c: the lowest one that costs at most ``drop`` of the final exit's validation accuracy."""

    drop: Annotated[float, Field(ge=0, le=1)] = 0.005


class Recipe(_Strict):
    """The whole file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    seed: Annotated[int, Field(ge=0)]
    data: DataRecipe
    model: ModelRecipe
    train: TrainRecipe
    quantize: QuantizeRecipe = QuantizeRecipe()
    threshold: ThresholdRecipe = ThresholdRecipe()

    @classmethod
    def parse(cls, text: str, *, origin: str = "recipe") -> Recipe:
        """A recipe from TOML text.

        Raises:
            ConfigError: not TOML, or a field that is unknown, missing or out of range; names the first such
                field.
        """
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{origin} is not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "top level"
            raise ConfigError(f"{origin}: {field}: {first['msg']}") from error

    def stage_sha256(self, stage: Stage) -> str:
        """Hash of all that decides how a stage ends: recipes that agree on it can share its checkpoint."""
        train = self.train
        decides: list[object] = [self.seed, self.data.model_dump(), self.model.backbone, train.batch_size]
        decides += [train.momentum, train.weight_decay, train.base.model_dump()]
        if stage != "base":
            decides += [self.model.exit, train.rho, train.exit.model_dump()]
        if stage == "regularised":
            decides += [train.regularised.model_dump()]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> tuple[Recipe, str]:
    """A recipe file and its text.

    Raises:
        ConfigError: see `Recipe.parse`; also a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from error
    return Recipe.parse(text, origin=str(path)), text


def _one_of(value: str, known: Iterable[str]) -> str:
    if value not in (names := sorted(known)):
        raise ValueError(f"unknown {value!r}, use one of {', '.join(names)}")
    return value
