"""What ``offramp split`` takes: one table for its flags, for a recipe's ``[split]`` and for the documents.

A recipe is a TOML file; paths in it are relative to it. A flag wins over the recipe, that over the default.
The recipe that is written beside a bundle is of the same format and can be run again.

    [split]
    model = "timm:efficientnet_lite0"
    data = "photos"
    out = "my-split"
    head_macs = 0.4
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.training import toml
from offramp.training.kinds import (
    Choice,
    File,
    Kind,
    Levels,
    Memory,
    Names,
    Number,
    Places,
    Points,
    Several,
    Size,
    Switch,
    Text,
    Values,
    Wrong,
)

RECIPE_BYTES = 1 << 20
TABLE = "split"
MARK = "# Made by `offramp split`.\n"
"""How the recipes begin that `offramp split` writes."""
RECIPE = "recipe.toml"
"""Beside a bundle."""
MAX_SIDE = 4096


@dataclass(frozen=True)
class Field:
    """One field: a flag, and a key of ``[split]``. text: help, without the default."""

    name: str
    kind: Kind
    text: str
    metavar: str = ""
    default: Any = None
    group: str = ""
    shown: str = ""
    """The default in words, where it is not a value."""

    @property
    def flag(self) -> str:
        """``--head-macs``."""
        return "--" + self.name.replace("_", "-")


MODEL, WHERE, GOAL = "the model", "where to cut", "what for"
EFFORT, PHOTOS, TENSORS = "how long", "the photos", "sounds and tensors"
FIELDS = (
    Field("model", Text("timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package.module:function, vgg19, "
        "resnet32 or mobilenetv2"), "timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, "
        "package.module:function, or one of the paper's", "MODEL"),
    Field("data", File("a folder of photos, or a Parquet or CSV file"), "folder of photos, or a file",
        "FOLDER"),
    Field("out", File("a folder"), "folder for bundle, report and work", "DIR"),
    Field("whole", File("a folder"), "folder for the unsplit classifier, as a bundle for "
        "cloud-server --pictures", "DIR"),
    Field("weights", File(), "safetensors, or torch.save's state_dict", "FILE", group=MODEL),
    Field("pretrained", Switch(), "its makers' weights, which may be downloaded", default=False, group=MODEL),
    Field("side", Number.of(8, MAX_SIDE, whole=True), "of its pictures", "PIXELS", group=MODEL,
        shown="its own"),
    Field("mean", Levels(), "of pixels from 0 to 1, if not its own", "R,G,B", group=MODEL),
    Field("std", Levels(), "deviation of pixels, the same way", "R,G,B", group=MODEL),
    Field("classifier", Choice.of("auto", "keep", "new"),
        "its last layer; auto keeps it if it answers the photos", "CHOICE", default="auto", group=MODEL),
    Field("cut", Text("a name, as `offramp cuts` has it"), "as `offramp cuts` names it", "NAME", group=WHERE),
    Field("cuts", Places(), "several in place of one: a part, and an exit, before each", "NAME", default=(),
        group=WHERE),
    Field("head_macs", Number.of(0.01, 1),
        "share of the multiply-accumulates for the device, code and early exit included", "SHARE",
        group=WHERE, shown="0.5, unless the profile has head_seconds"),
    Field("head_memory", Size(), "most bytes of activations that the device holds at once", "SIZE",
        group=WHERE),
    Field("ram", Memory(), "of a microcontroller that the head has to fit as C (`offramp export-c`)", "BYTES",
        group=WHERE),
    Field("flash", Memory(), "the same of its flash", "BYTES", group=WHERE),
    Field("profile", File("a TOML file of the device"), "TOML file of the device: memory, flash, speed",
        "FILE", group=WHERE),
    Field("bytes", Several.of(4, 100_000), "of a photo that is sent, about", "B[,B…]", default=60.0,
        group=GOAL),
    Field("drop", Points(),
        "T_c for fewest bytes at most so many points below the pair's best", "POINTS", group=GOAL,
        shown="1, unless --budget"),
    Field("budget", Several.of(0, 1e9, unit="a number of bytes"),
        "T_c for most accuracy at so many bytes a photo, on average over all photos", "B[,B…]", group=GOAL),
    Field("hop_costs", Values("numbers from 0, as 1,0.05", "list of numbers", low=0.0),
        "what a byte costs on each hop, where --drop has fewest bytes", "N,…", default=(), group=GOAL,
        shown="1 each"),
    Field("rho", Values("numbers from 0, as 0.7,1", "list of numbers", low=0.0),
        "weights of the exits' losses, Eq. (1) of the paper, the final one's last", "R,…", default=(),
        group=GOAL, shown="0.7 for each early exit, 1 for the final one"),
    Field("minutes", Number.of(0.1, 10_000), "for everything", "M", group=EFFORT,
        shown="30, unless epochs, versions and steps are given"),
    Field("rival_minutes", Number.of(0, 10_000),
        "more, to tune a copy of the unsplit model on WebP, for a fair comparison", "M", default=0.0,
        group=EFFORT),
    Field("epochs", Number.of(0, 1000, whole=True), "of tuning all weights, in place of time", "N",
        group=EFFORT),
    Field("versions", Number.of(1, 64, whole=True),
        "of each photo whose activations are kept, in place of time", "N", group=EFFORT),
    Field("steps", Number.of(1, 1_000_000, whole=True), "of training the code, in place of time", "N",
        group=EFFORT),
    Field("joint", Number.of(0, 1_000_000, whole=True),
        "more steps that train the codes of several cuts together", "N", default=0, group=EFFORT),
    Field("learn_tail", Switch(),
        "what is behind the last cut learns with the code: half as long again, more accuracy at few bytes",
        default=False, group=EFFORT),
    Field("seed", Number.of(0, 2**31 - 1, whole=True), "decides parts, first weights and augmentation", "N",
        default=0, group=EFFORT),
    Field("flip", Switch(), "a mirrored photo is still one of its class", default=True, group=PHOTOS),
    Field("skip_bad", Switch(), "leave out what cannot be used, and name it", default=False, group=PHOTOS),
    Field("image_column", Text(), "of Parquet", "NAME", default="image", group=PHOTOS),
    Field("label_column", Text(), "of Parquet", "NAME", default="label", group=PHOTOS),
    Field("classes", Names(), "names by label, or the order of folders", "A,B,…", default=(), group=PHOTOS),
    Field("input", Choice.of("auto", "picture", "wav", "tensor"),
        "what the data are: pictures, WAV files, or .npy files; auto looks", "KIND", default="auto",
        group=TENSORS),
    Field("rate", Number.of(4000, 48_000, whole=True), "Hz that sounds are resampled to", "N", group=TENSORS,
        shown="the files' own"),
    Field("seconds", Number.of(0.01, 600), "of each sound, its middle", "N", group=TENSORS,
        shown="what 95 of 100 files last"),
    Field("mels", Number.of(1, 512, whole=True), "bands of the spectrogram", "N", group=TENSORS, shown="40"),
    Field("window", Number.of(16, 8192, whole=True), "samples of each of its frames", "N", group=TENSORS,
        shown="32 ms"),
    Field("hop", Number.of(1, 8192, whole=True), "samples from frame to frame", "N", group=TENSORS,
        shown="12.5 ms"),
    Field("fmin", Number.of(0, 96_000), "Hz where its bands begin", "N", group=TENSORS, shown="50"),
    Field("fmax", Number.of(1, 96_000), "Hz where they end", "N", group=TENSORS, shown="half the rate"),
    Field("floor", Number.of(-200, -1), "decibels of what is quieter", "N", group=TENSORS, shown="-80"),
    Field("range", Values("two numbers, the lower first, as -1,1", "list of two numbers", True),
        "of a tensor's values", "LOW,HIGH", group=TENSORS, shown="their own"),
    Field("value_mean", Values(), "of the values that the model expects, one or one a channel", "N,…",
        group=TENSORS, shown="their own"),
    Field("value_std", Values(), "deviation of these values, the same way", "N,…", group=TENSORS,
        shown="their own"),
)  # fmt: skip
BY_NAME = {each.name: each for each in FIELDS}
OF_TENSORS = {field.name: field.name.removeprefix("value_") for field in FIELDS if field.group == TENSORS}
"""Fields of sounds and tensors, by what `training.data.tensors.Options` calls them."""
del OF_TENSORS["input"]
REQUIRED = ("model", "data", "out")
INSTEAD: dict[str, tuple[str, ...]] = {
    "drop": ("budget",),
    "budget": ("drop",),
    "weights": ("pretrained",),
    "pretrained": ("weights",),
    "head_macs": ("cut", "cuts"),
    "head_memory": ("cut", "cuts"),
    "profile": ("cut", "cuts"),
    "cut": ("cuts",),
    "cuts": ("cut",),
}
"""A flag takes the place of these fields of a recipe, too: of two such fields one alone counts."""
ONE_OF = (("drop", "budget"), ("weights", "pretrained"), ("cut", "cuts"))
"""Of these a recipe, or flags, may have one."""


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields that a recipe has, paths joined with its folder.

    Raises:
        ConfigError: not such a file, or a field that is unknown or has a wrong value, by its name.
    """
    text = read_bounded(path, RECIPE_BYTES, expected="a TOML file that `offramp init` wrote")
    values = parse_recipe(text, str(path))
    for name, value in values.items():
        if isinstance(BY_NAME[name].kind, File):
            values[name] = path.parent / value
    return values


def parse_recipe(text: bytes, origin: str) -> dict[str, Any]:
    """The same of a recipe's text, its paths as they stand there."""
    try:
        document = toml.parsed(text.decode())
    except ValueError as error:
        raise ConfigError(f"{origin}: not a TOML file: {printable(str(error))}") from None
    table = document.pop(TABLE, None)
    if not isinstance(table, dict):
        training = {"data", "model", "train"} & document.keys()
        hint = "; recipes with [data] and [train] are those of `offramp train`" if training else ""
        raise ConfigError(
            f"{origin}: has no table [{TABLE}]; expected one, as `offramp init` writes it{hint}"
        )
    if document:
        raise ConfigError(
            f"{origin}: {printable(next(iter(document)))}: unknown; expected the table [{TABLE}] alone"
        )
    values = {}
    for name, value in table.items():
        field = BY_NAME.get(name)
        if field is None:
            raise ConfigError(f"{origin}: {TABLE}.{printable(name)}: no such field; {_similar(name)}")
        try:
            values[name] = field.kind.from_toml(value)
        except Wrong:
            shown = printable(json.dumps(value, default=str), 60)
            raise ConfigError(f"{origin}: {TABLE}.{name} = {shown}; expected {field.kind.expected}") from None
    for first, second in ONE_OF:
        if _is_set(values.get(first)) and _is_set(values.get(second)):
            raise ConfigError(f"{origin}: {TABLE} has {first} and {second}; expected one of them")
    return values


def refuse_both(values: Mapping[str, Any], named: Callable[[str], str]) -> None:
    """Raise ConfigError where two fields are set of which one alone counts; named: what they are called."""
    for first, second in ONE_OF:
        if _is_set(values.get(first)) and _is_set(values.get(second)):
            raise ConfigError(f"{named(first)} and {named(second)}: expected one of them")


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value != ()


def _similar(name: str) -> str:
    near = get_close_matches(name, BY_NAME, 1, 0.6)
    return f"expected {near[0]}" if near else f"expected one of {', '.join(BY_NAME)}"


def together(recipe: Mapping[str, Any], flags: Mapping[str, Any], origin: str = "") -> dict[str, Any]:
    """All fields: flags over a recipe over defaults.

    Args:
        recipe: of `read_recipe`; empty without one.
        flags: those that were given, by field.
        origin: the recipe's name, for errors.

    Raises:
        ConfigError: a required field is in neither, or two flags of which one alone counts.
    """
    refuse_both(flags, lambda name: BY_NAME[name].flag)
    replaced = {other for name in flags for other in INSTEAD.get(name, ()) if _is_set(flags[name])}
    values = {name: each for name, each in recipe.items() if name not in replaced} | dict(flags)
    for name in REQUIRED:
        if values.get(name) is None:
            field = BY_NAME[name]
            given = field.metavar if name == "model" else f"{field.flag} {field.metavar}"
            where = f"{origin}: {TABLE}.{name} is missing" if origin else f"{given} is missing"
            raise ConfigError(f"{where}; expected {field.kind.expected}")
    return settled({field.name: field.default for field in FIELDS} | values)


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """Values in which drop and minutes have their defaults, where nothing takes their place."""
    if values.get("drop") is None and values.get("budget") is None:
        values["drop"] = 1.0
    if values.get("minutes") is None and None in (
        values.get(name) for name in ("steps", "versions", "epochs")
    ):
        values["minutes"] = 30.0
    return values


def recipe_toml(values: Mapping[str, Any], *, beside: Path | None, notes: Sequence[str] = ()) -> str:
    """A recipe's text: what differs from the defaults.

    Args:
        values: fields.
        beside: the folder that it is written to, from which paths are; None: paths by their last part only,
            for a manifest, which says nothing of where things lie.
        notes: comments at its top.
    """
    lines = [*(f"# {note}" for note in notes), f"[{TABLE}]"]
    for field in FIELDS:
        value = values.get(field.name)
        if value is None or (value == field.default and field.name != "seed"):
            continue
        if isinstance(field.kind, File):
            value = Path(value).name if beside is None else path_from(Path(value), beside)
        lines.append(f"{field.name} = {toml_value(value)}")
    return MARK + "\n".join(lines) + "\n"


def path_from(path: Path, folder: Path) -> str:
    """A path as it is from a folder, for a recipe that is written there."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def toml_value(value: object) -> str:
    """TOML text of a value: JSON's strings, numbers, booleans and lists are TOML's as well."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def table_rows() -> Iterable[tuple[str, str, str, str, str]]:
    """Field, flag, what it takes, default and text of every field, for the documents."""
    for field in FIELDS:
        flag = f"--no-{field.flag[2:]}" if field.default is True else field.flag
        shown = field.shown
        if not shown and field.name in REQUIRED:
            shown = "required"
        elif not shown and field.default not in (None, ()):
            shown = f"`{toml_value(field.default)}`"
        yield (
            f"`{field.name}`",
            "`MODEL`" if field.name == "model" else f"`{flag}`",
            field.kind.toml,
            shown,
            field.text,
        )
