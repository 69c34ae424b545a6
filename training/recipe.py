"""A recipe: one TOML file that says all of how a bundle comes to be. Unknown or missing fields are errors.

A file may hold several: each entry of its ``variants`` is the file's recipe with some fields replaced, named
``<name>-<variant>``.

    variants = [
      { name = "exit5", model.exit = 5 },
      { name = "exit5-entropy1", model.exit = 5, train.regularised.entropy = 1.0 },
    ]
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from offramp.common.errors import ConfigError
from offramp.common.files import read_bounded
from offramp.training.models.networks import BACKBONES
from offramp.training.record import Stage

Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _DataRecipe(_Strict):
    """What is learned from: share held out for validation, augmentation (pixels of shift, mirroring)."""

    validation: Share
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    def decides(self) -> dict[str, Any]:
        """The fields that decide how training ends, beside the images themselves."""
        return self.model_dump()


class DigitsRecipe(_DataRecipe):
    """scikit-learn's digits; ``test`` is the share held out for reported figures."""

    source: Literal["sklearn-digits"]
    test: Share


class PicturesRecipe(_DataRecipe):
    """Pictures of any origin: their column, the labels' column, the side that they are resized to."""

    image: str = "image"
    label: str = "label"
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    classes: list[str] = []
    """Names by label, where the data has none."""

    @property
    def title(self) -> str:
        """What the data set is called in a bundle's manifest."""
        raise NotImplementedError

    def decides(self) -> dict[str, Any]:
        """Not where the images lie: their hash says which they are."""
        return {name: getattr(self, name) for name in ("validation", "shift", "flip", "size")}


class HubRecipe(PicturesRecipe):
    """A data set of the Hugging Face hub: its configuration if it has several, what trains and tests."""

    source: Literal["hub"]
    name: str
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str = "test"

    @property
    def title(self) -> str:
        """The hub's name for it."""
        return self.name


class _LocalRecipe(PicturesRecipe):
    train: str | list[str]
    test: str | list[str]

    @property
    def title(self) -> str:
        """The files' or folders' own names, not where they lie."""
        names = [*_listed(self.train), *_listed(self.test)]
        return ", ".join(Path(name).name for name in names)[:200]


class ParquetRecipe(_LocalRecipe):
    """Local Parquet files."""

    source: Literal["parquet"]


class FolderRecipe(_LocalRecipe):
    """A folder with one sub-folder a class, for training and for testing."""

    source: Literal["imagefolder"]
    train: str
    test: str


DataRecipe = DigitsRecipe | HubRecipe | ParquetRecipe | FolderRecipe
RECIPE_BYTES = 1 << 20
SOURCES = ("hub", "imagefolder", "parquet", "sklearn-digits")


class BottleneckRecipe(_Strict):
    """The code that travels in place of the activation: its channels and stride, the width of its layers.

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


class ModelRecipe(_Strict):
    """Backbone by name and the number of the exit, which is also where the model is split."""

    backbone: str
    exit: Annotated[int, Field(ge=1)]
    bottleneck: BottleneckRecipe | None = None

    @field_validator("backbone")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, BACKBONES)


class StageRecipe(_Strict):
    """One training stage; the learning rate falls from this value to 0 along half a cosine."""

    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    images: Annotated[int, Field(ge=1)] | None = None
    """How many of the training images an epoch draws, others each time; None: all."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The smallest share of an image that the stage sees, blown up to the whole frame; 1: all of it."""
    weight_decay: Weight | None = None
    """The stage's own; None: that of ``[train]``."""


class BaseRecipe(StageRecipe):
    """The base stage, where images may be smaller at first: it has no early exit whose size they decide.

    ``sides`` are those of the images in the first epochs, one each; in the others images have their own size.
    """

    sides: list[Annotated[int, Field(ge=8)]] = []

    @model_validator(mode="after")
    def _whole_at_last(self) -> Self:
        if len(self.sides) >= max(1, self.epochs):
            raise ValueError("sides: expected fewer than epochs, so that the last ones see whole images")
        return self


class CodeRecipe(StageRecipe):
    """The stage in which a bottleneck, if there is one, learns to hand on the activation; all else stays.

    ``rate`` is the loss of one KB of estimated payload for each image, where the variance of what has to come
    out right is 1: that is the output of position ``at`` behind the split, or, None, the activation itself.
    """

    rate: Weight = 0.0
    at: Annotated[int, Field(ge=1)] | None = None


class TaughtRecipe(StageRecipe):
    """A stage in which the unsplit model teaches.

    ``distill`` is the share of an exit's loss that asks for the unsplit model's answers, at ``temperature``,
    in place of the labels.
    ``cutmix`` is the share of a batch's images that get a part of another one pasted over them. They have no
    label and cost no bytes: the unsplit model says what the answers are.
    """

    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    cutmix: Annotated[float, Field(ge=0, lt=1)] = 0.0


class RateRecipe(TaughtRecipe):
    """A stage in which a bottleneck and both exits learn together.

    ``learning_rate`` is the bottleneck's; ``tail`` and ``head`` are the shares of it that the rest of the
    network on the server and on the device get, with the early exit; 0: stays as it is. ``rate`` is the loss
    of one KB of estimated payload for each image. ``distill`` is the final exit's, ``distill_early`` the
    early exit's.
    """

    rate: Weight = 0.0
    distill_early: Annotated[float, Field(ge=0, le=1)] = 0.0
    tail: Weight = 0.2
    head: Weight = 0.0


class RegularisedRecipe(RateRecipe):
    """The joint stage: lambda_e and N_b of Eq. (3), lambda_s of Eq. (6), or a bottleneck's losses.

    ``webp`` are qualities: the stage then sees each image as it is or as WebP of one of them leaves it, for a
    server that is sent pictures.
    """

    entropy: Weight = 0.0
    sparsity: Weight = 0.0
    bins: Annotated[int, Field(ge=2)] = 256
    webp: list[Annotated[int, Field(ge=0, le=100)]] = []


class TailRecipe(StageRecipe):
    """The server's half alone learns from the symbols that the INT8 head sends, where there is a bottleneck.
    Without one, the step of what travels is chosen by the tail's own answers.

    ``distill`` and ``temperature`` as in `TaughtRecipe`.
    """

    distill: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0


class BranchRecipe(TaughtRecipe):
    """The early exit alone learns; all else stays, and what travels with it.

    ``widths``: a new early exit takes the old one's place, with as many 3x3 convolutions of stride 2 of its
    own before its pool, of so many channels; none: the old one learns on.
    """

    widths: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(max_length=4)] = []

    @model_validator(mode="after")
    def _learnt(self) -> Self:
        if self.widths and not self.epochs:
            raise ValueError("widths: expected none where the new early exit has no epochs to learn in")
        return self


STAGES_OF_A_CODE: frozenset[Stage] = frozenset({"code", "restart", "tail"})
"""Those that there are only where there is a bottleneck."""


class TrainRecipe(_Strict):
    """The schedule of Sec. V: base, then with the early exit, then with the regulariser. Where there is a
    bottleneck, the code alone before the last. After it, with or without one, the early exit alone; with one,
    all of it once more with other settings, and at last the tail alone."""

    batch_size: Annotated[int, Field(ge=2)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    rho: list[Weight] | None = None
    base: BaseRecipe
    exit: StageRecipe
    code: CodeRecipe = CodeRecipe(epochs=0, learning_rate=2e-3)
    regularised: RegularisedRecipe
    branch: BranchRecipe = BranchRecipe(epochs=0, learning_rate=2e-3)
    restart: RateRecipe = RateRecipe(epochs=0, learning_rate=5e-4)
    tail: TailRecipe = TailRecipe(epochs=0, learning_rate=5e-4)

    @property
    def stages(self) -> dict[Stage, StageRecipe]:
        """All of them, in the order in which they run."""
        return {
            "base": self.base,
            "exit": self.exit,
            "code": self.code,
            "regularised": self.regularised,
            "branch": self.branch,
            "restart": self.restart,
            "tail": self.tail,
        }

    @property
    def last_joint(self) -> RateRecipe:
        """The last stage in which both halves of a rate-trained split learn: its price is the code's."""
        return self.restart if self.restart.epochs > 0 else self.regularised


class QuantizeRecipe(_Strict):
    """Post-training quantization: share of the validation images that calibrates it.

    ``divergence``: how far the step of what travels may move an exit's answers, mean nats; 0: not at all, 256
    codes over the range as in the paper.
    """

    calibration: Annotated[float, Field(gt=0, le=1)] = 0.25
    divergence: Weight = 0.01


class ThresholdRecipe(_Strict):
    """The default T_c: the lowest that costs at most ``drop`` of the best validation accuracy any has."""

    drop: Annotated[float, Field(ge=0, le=1)] = 0.005


class Recipe(_Strict):
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
        last = self.train.regularised
        if self.model.bottleneck is None and last.rate > 0:
            raise ValueError("train.regularised.rate is the price of a code: needs model.bottleneck")
        if self.model.bottleneck is None and last.cutmix > 0:
            raise ValueError("train.regularised.cutmix has the unsplit model teach: needs model.bottleneck")
        if self.model.bottleneck is not None and (last.entropy > 0 or last.sparsity > 0):
            raise ValueError("model.bottleneck takes train.regularised.rate, not entropy or sparsity")
        if self.model.bottleneck is not None and last.epochs == 0:
            raise ValueError("model.bottleneck is trained in the last stage: train.regularised.epochs is 0")
        return self

    @classmethod
    def parse(cls, text: str, *, origin: str = "recipe") -> Recipe:
        """A recipe from TOML text.

        Raises:
            ConfigError: not TOML, or a field that is unknown, missing or out of range; names the first such
                field.
        """
        return cls._checked(_toml(text, origin), origin)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], origin: str) -> Recipe:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"] if part not in SOURCES) or "top level"
            raise ConfigError(f"{origin}: {field}: {first['msg']}") from error

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
        if not isinstance(data, _LocalRecipe):
            return self
        update: dict[str, str | list[str]] = {}
        for field in fields:
            names = getattr(data, field)
            joined = [str(folder / name) for name in _listed(names)]
            update[field] = joined[0] if isinstance(names, str) else joined
        return self.model_copy(update={"data": data.model_copy(update=update)})

    def stage_sha256(self, stage: Stage) -> str:
        """Hash of all that decides how a stage ends: recipes that agree on it can share its checkpoint."""
        train = self.train
        decides: list[object] = [self.seed, self.data.decides(), self.model.backbone, train.batch_size]
        decides += [train.momentum, train.weight_decay, _decides(train.base)]
        if stage != "base":
            decides += [self.model.exit, train.rho, _decides(train.exit)]
        if self.model.bottleneck is not None and stage not in ("base", "exit"):
            decides += [_decides(train.code), _decides(self.model)]
        if stage in ("regularised", "branch", "restart", "tail"):
            decides += [_decides(train.regularised), _decides(self.model)]
        restarted = stage == "restart" or (stage == "tail" and train.restart.epochs > 0)
        # The early exit alone has no part in how the tail ends.
        if stage == "branch" or (restarted and train.branch.epochs > 0):
            decides += [_decides(train.branch)]
        if restarted:
            decides += [_decides(train.restart)]
        if stage == "tail":
            decides += [_decides(train.tail), _decides(self.quantize)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


# Where they do nothing they are left out: checkpoints older than these fields still fit.
_LATER_FIELDS: dict[str, object] = {
    "crop": 1,
    "cutmix": 0,
    "density": "channel",
    "distill_early": 0,
    "weight_decay": None,
}


def _decides(part: BaseModel) -> dict[str, Any]:
    """The fields that decide how training ends."""
    return _without(part.model_dump())


def _without(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _LATER_FIELDS or _LATER_FIELDS[name] != value
    }


def read(path: Path, *, settings: Sequence[str] = (), only: Sequence[str] = ()) -> list[tuple[Recipe, str]]:
    """The recipes of a file, each with its text: the file's own where nothing was replaced.

    Paths in the file are relative to the file.

    Args:
        path: the TOML file.
        settings: fields to replace, as ``train.base.epochs=30``; what a variant says of them stays.
        only: names of the variants that are wanted; none: all.

    Raises:
        ConfigError: see `Recipe.parse`; also a file that cannot be read, or a variant that is not there.
    """
    text = _text(path)
    values = _toml(text, str(path))
    variants = values.pop("variants", None)
    # Paths in the file are relative to it, those of --set to the current directory.
    own_paths = {"train", "test"}
    for setting in settings:
        replaced = _toml(setting, f"--set {setting}")
        values = _merged(values, replaced)
        if isinstance(replaced.get("data"), dict):
            own_paths -= set(replaced["data"])
    if variants is None:
        if only:
            raise ConfigError(f"{path} has no variants")
        recipe = Recipe._checked(values, str(path)).beside(path.parent, own_paths)
        return [(recipe, to_toml(values) if settings else text)]
    found: dict[str, tuple[Recipe, str]] = {}
    for variant in variants if isinstance(variants, list) else [None]:
        if not isinstance(variant, dict) or not isinstance(variant.get("name"), str):
            raise ConfigError(f"{path}: variants: expected tables, each with a name")
        name = variant["name"]
        if name in found:
            raise ConfigError(f"{path}: variants: {name!r} is there twice")
        own = _merged(values, {**variant, "name": f"{values.get('name')}-{name}"})
        recipe = Recipe._checked(own, f"{path}, variant {name}").beside(path.parent, own_paths)
        found[name] = (recipe, to_toml(own))
    for name in only:
        _one_of_variants(name, found, path)
    return [found[name] for name in (only or found)]


def _text(path: Path) -> str:
    try:
        return read_bounded(
            path, RECIPE_BYTES, name=f"cannot read recipe {path}", expected="a TOML file"
        ).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read recipe {path}: is not UTF-8 text, expected a TOML file") from None


def has_variants(path: Path) -> bool:
    """Whether a recipe file that ``read`` accepts holds several."""
    return "variants" in _toml(_text(path), str(path))


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML text of nested tables of strings, numbers, booleans and lists of these."""
    lines: list[str] = []

    def table(prefix: str, content: Mapping[str, Any]) -> None:
        if prefix:
            lines.append(f"\n[{prefix}]")
        lines.extend(
            # JSON's strings, numbers, booleans and lists are TOML's as well.
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in content.items()
            if not isinstance(value, dict)
        )
        for key, value in content.items():
            if isinstance(value, dict):
                table(f"{prefix}.{key}" if prefix else key, value)

    table("", values)
    return "\n".join(lines) + "\n"


def _toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not TOML: {error}") from error


def _merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields of ``other`` in place of its own, table by table."""
    merged = dict(base)
    for key, value in other.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


def _listed(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files


def _one_of_variants(name: str, known: Iterable[str], path: Path) -> None:
    try:
        _one_of(name, known)
    except ValueError as error:
        raise ConfigError(f"{path}: variant: {error}") from None


def _one_of(value: str, known: Iterable[str]) -> str:
    if value not in (names := sorted(known)):
        raise ValueError(f"unknown {value!r}, use one of {', '.join(names)}")
    return value
