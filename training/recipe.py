"""A recipe: all that says how a bundle comes to be. Unknown or missing fields are errors.

Each table belongs to the room that reads it: ``[data]`` to `data.recipe`, ``[model]`` to `models.recipe`,
``[train.*]`` to its stage in `stages`, ``[quantize]`` to `quantize.recipe`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, ValidationError, create_model, model_validator

from offramp.common.errors import ConfigError
from offramp.training import toml
from offramp.training.data.recipe import (
    SOURCES,
    DataRecipe,
    FolderRecipe,
    LocalRecipe,
    ParquetRecipe,
    PicturesRecipe,
    listed,
)
from offramp.training.fields import Section, Weight, problem
from offramp.training.models.recipe import ModelRecipe
from offramp.training.quantize.recipe import QuantizeRecipe
from offramp.training.stages.schedule import STAGES
from offramp.training.stages.stage import Plan, StageRecipe


class Schedule(Section):
    """``[train]``: what all stages share. A section for each stage is added to it."""

    batch_size: Annotated[int, Field(ge=2)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    rho: list[Weight] | None = None

    if TYPE_CHECKING:

        def __getattr__(self, stage: str) -> Any: ...

    @property
    def stages(self) -> dict[str, StageRecipe]:
        """Every stage's section, in the order in which they run."""
        return {stage.name: getattr(self, stage.name) for stage in STAGES}


if TYPE_CHECKING:
    TrainRecipe = Schedule
else:
    TrainRecipe = create_model(
        "TrainRecipe",
        __base__=Schedule,
        **{stage.name: (stage.recipe, ... if stage.default is None else stage.default) for stage in STAGES},
    )


class ThresholdRecipe(Section):
    """The default T_c: the lowest that costs at most ``drop`` of the best validation accuracy any has."""

    drop: Annotated[float, Field(ge=0, le=1)] = 0.005


class Recipe(Section):
    """The whole file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=64)]
    seed: Annotated[int, Field(ge=0)]
    data: Annotated[DataRecipe, Field(discriminator="source")]
    model: ModelRecipe
    train: TrainRecipe
    quantize: QuantizeRecipe = QuantizeRecipe()
    threshold: ThresholdRecipe = ThresholdRecipe()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for stage in STAGES:
            stage.check(self.plan)
        return self

    @property
    def plan(self) -> Plan:
        """What it says to its stages."""
        train = self.train
        return Plan(self.seed, self.model, self.quantize, train.rho, train.regularised.bins, train.stages)

    @classmethod
    def parse(cls, text: str, *, origin: str = "recipe") -> Recipe:
        """A recipe from TOML text.

        Raises:
            ConfigError: not TOML, or a field that is unknown, missing or out of range; names the first such
                field.
        """
        return cls.checked(toml_values(text, origin), origin)

    @classmethod
    def checked(cls, values: Mapping[str, Any], origin: str) -> Recipe:
        """A recipe from values, as `parse` gives it."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {problem(error, cls, SOURCES)}") from None

    def with_files(self, train: Sequence[str], test: Sequence[str]) -> Recipe:
        """This recipe on local Parquet files of the same columns, or on one folder of class folders each.

        Raises:
            ConfigError: a recipe whose data are no pictures; files and folders mixed.
        """
        data = self.data
        if not isinstance(data, PicturesRecipe):
            raise ConfigError(f"recipe {self.name} takes its data from {data.source}, not from files")
        fields = {name: getattr(data, name) for name in PicturesRecipe.model_fields}
        local: DataRecipe
        folders = [path for path in (*train, *test) if Path(path).is_dir()]
        if not folders:
            local = ParquetRecipe(source="parquet", train=list(train), test=list(test), **fields)
        elif len(train) == len(test) == 1 and len(folders) == 2:
            local = FolderRecipe(source="imagefolder", train=train[0], test=test[0], **fields)
        else:
            raise ConfigError(
                f"--train-data, --test-data: {folders[0]} is a folder, expected one folder each, "
                "or Parquet files"
            )
        return self.model_copy(update={"data": local})

    def beside(self, folder: Path, fields: Iterable[str] = ("train", "test")) -> Recipe:
        """This recipe with the relative paths in these fields of its data taken from a folder: its file's."""
        data = self.data
        if not isinstance(data, LocalRecipe):
            return self
        update: dict[str, str | list[str]] = {}
        for field in fields:
            names = getattr(data, field)
            joined = [str(folder / name) for name in listed(names)]
            update[field] = joined[0] if isinstance(names, str) else joined
        return self.model_copy(update={"data": data.model_copy(update=update)})

    def stage_sha256(self, name: str) -> str:
        """Hash of all that decides how a stage ends: recipes that agree on it can share its checkpoint."""
        train, plan = self.train, self.plan
        decides: list[object] = [self.seed, self.data.decides(), self.model.backbone, train.batch_size]
        decides += [train.momentum, train.weight_decay]
        own = next(stage for stage in STAGES if stage.name == name)
        for stage in STAGES:
            if stage is own:
                break
            if stage.present(plan) and own.builds_on(stage.name, plan):
                decides += stage.decides(plan)
        decides += own.decides(plan)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def toml_values(text: str, origin: str) -> dict[str, Any]:
    """The values in a TOML text. Raises ConfigError where it is something else."""
    try:
        return toml.parsed(text)
    except ValueError as error:
        raise ConfigError(f"{origin} is not TOML: {error}") from error
