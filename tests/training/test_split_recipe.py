"""The table of fields: from flags and from TOML, over one another, written, and what is wrong with one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from offramp.common.errors import ConfigError
from offramp.training.kinds import Switch, Wrong
from offramp.training.split_recipe import (
    BY_NAME,
    FIELDS,
    MARK,
    parse_recipe,
    read_recipe,
    recipe_toml,
    together,
)

LEAST = {"model": "m", "data": "photos", "out": "split"}


def recipe(text: str) -> dict[str, Any]:
    return parse_recipe(f"[split]\n{text}\n".encode(), "my.toml")


@pytest.mark.parametrize(
    ("name", "text", "toml", "value"),
    [
        ("side", "64", "64", 64),
        ("head_macs", "0.3", "0.3", 0.3),
        ("bytes", "40", "40", 40.0),
        ("bytes", "80,30", "[80, 30]", (80.0, 30.0)),
        ("budget", "20,0", "[20, 0]", (20.0, 0.0)),
        ("hop_costs", "1,0.05", "[1, 0.05]", (1.0, 0.05)),
        ("rho", "1,0.5,1", "[1, 0.5, 1]", (1.0, 0.5, 1.0)),
        ("mean", "0.5", "0.5", (0.5, 0.5, 0.5)),
        ("std", "0.1,0.2,0.3", "[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
        ("head_memory", "500kB", '"500kB"', 500_000),
        ("head_memory", "1.5 MiB", "1572864", 1_572_864),
        ("ram", "256k", '"256k"', 262_144),
        ("flash", "1m", "1048576", 1 << 20),
        ("classes", "a,b", '["a", "b"]', ("a", "b")),
        ("classifier", "keep", '"keep"', "keep"),
        ("drop", "0", "0", 0.0),
    ],
)
def test_a_flag_and_a_recipe_say_the_same(name: str, text: str, toml: str, value: object) -> None:
    assert BY_NAME[name].kind.from_text(text) == value == recipe(f"{name} = {toml}")[name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("side", "64.5"), ("side", "7"), ("head_macs", "nan"), ("head_macs", "2"), ("mean", "0.1,0.2"),
        ("mean", "0"), ("head_memory", "0"), ("head_memory", "1e400"), ("head_memory", "5 parsecs"),
        ("ram", "0"), ("flash", "1.5m"),
        ("classifier", "maybe"), ("drop", "0.01"), ("drop", "101"), ("model", ""), ("bytes", "40,"),
        ("bytes", "2,40"), ("hop_costs", "1,-1"), ("budget", ""),
    ],
)  # fmt: skip
def test_what_a_field_does_not_take(name: str, text: str) -> None:
    with pytest.raises(Wrong):
        BY_NAME[name].kind.from_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("side = 7", "my.toml: split.side = 7; expected a whole number, 8 … 4096"),
        ('side = "64"', 'my.toml: split.side = "64"; expected a whole number, 8 … 4096'),
        ("side = true", "my.toml: split.side = true; expected a whole number, 8 … 4096"),
        ('pretrained = "no"', 'my.toml: split.pretrained = "no"; expected true or false'),
        ("sides = 7", "my.toml: split.sides: no such field; expected side"),
        ("mean = [1, 2]", "my.toml: split.mean = [1, 2]; expected one or three numbers from 0 to 1"),
        ("seed = 2020-01-01", 'my.toml: split.seed = "2020-01-01"; expected a whole number'),
        ("drop = 1\nbudget = 0", "my.toml: split has drop and budget; expected one of them"),
        ("drop = 0.01", "my.toml: split.drop = 0.01; expected points, 0 or 0.1 … 100; 1 is one of 100"),
        ("side = ", "my.toml: not a TOML file"),
        ("[other]", "my.toml: other: unknown; expected the table [split] alone"),
    ],
)
def test_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(text)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_recipe_of_training_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no table \[split\].* are those of `offramp train`"):
        parse_recipe(b"[data]\nx = 1\n[train]\n", "my.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r": not a TOML file"):
        read_recipe(tmp_path / "binary")
    with pytest.raises(ConfigError, match="expected a TOML file that `offramp init` wrote"):
        read_recipe(tmp_path / "nowhere")
    (tmp_path / "deep").write_text("[split]\nclasses = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"nested too deeply|not a TOML file"):
        read_recipe(tmp_path / "deep")


def test_flags_win_over_the_recipe_and_that_over_defaults() -> None:
    found = together({**LEAST, "seed": 3, "side": 64}, {"seed": 4})
    assert (found["seed"], found["side"], found["classifier"], found["bytes"]) == (4, 64, "auto", 60.0)
    assert (found["drop"], found["budget"], found["minutes"]) == (1.0, None, 30.0)
    fixed = together({**LEAST, "steps": 1, "versions": 1, "epochs": 0}, {"budget": 5.0})
    assert (fixed["drop"], fixed["budget"], fixed["minutes"]) == (None, 5.0, None)


@pytest.mark.parametrize(
    ("kept", "flag", "gone"),
    [
        ({"drop": 1.0}, {"budget": 5.0}, "drop"),
        ({"budget": 0.0}, {"drop": 2.0}, "budget"),
        ({"pretrained": True}, {"weights": Path("w")}, "pretrained"),
        ({"cut": "layer1"}, {"head_macs": 0.3}, "cut"),
        ({"cut": "layer1"}, {"profile": Path("p")}, "cut"),
    ],
)
def test_a_flag_takes_the_place_of_what_it_contradicts(
    kept: dict[str, Any], flag: dict[str, Any], gone: str
) -> None:
    found = together(LEAST | kept, flag)
    assert found[gone] == BY_NAME[gone].default and found.items() >= flag.items()


def test_what_is_missing_or_twice_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^MODEL is missing; expected timm:NAME"):
        together({}, {})
    with pytest.raises(ConfigError, match=r"^--data FOLDER is missing; expected a folder of photos"):
        together({}, {"model": "m"})
    with pytest.raises(ConfigError, match=r"^my\.toml: split\.out is missing; expected a folder$"):
        together({"model": "m", "data": "d"}, {}, "my.toml")
    with pytest.raises(ConfigError, match=r"^--drop and --budget: expected one of them$"):
        together(LEAST, {"drop": 0.0, "budget": 0.0})


def test_what_is_written_is_read_again_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    values = LEAST | {"data": tmp_path / "photos", "out": tmp_path / "here", "weights": tmp_path / "w.pth"}
    given = {
        "side": 64, "mean": (0.1, 0.2, 0.3), "head_macs": 0.3, "classes": ('a "b"', "ä"), "flip": False,
        "head_memory": 5, "seed": 0, "budget": 1.5,
    }  # fmt: skip
    text = recipe_toml(values | given, beside=tmp_path / "here", notes=["a note"])
    assert text.startswith(MARK + "# a note\n[split]\n")
    path = tmp_path / "here" / "recipe.toml"
    path.write_text(text)
    found = read_recipe(path)
    for name in ("data", "out", "weights"):
        assert found.pop(name).resolve() == values[name]
    assert found == {"model": "m", **given}
    # Nothing of where things lie.
    assert str(tmp_path.name) not in recipe_toml(values, beside=None)


def test_every_field_has_a_flag_and_words() -> None:
    assert len({field.flag for field in FIELDS}) == len(FIELDS)
    for field in FIELDS:
        assert field.text and field.kind.expected and field.kind.toml
        assert isinstance(field.kind, Switch) == (not field.metavar), field.name
    assert tomllib.loads(recipe_toml(LEAST, beside=None))["split"] == {
        "model": "m", "data": "photos", "out": "split"
    }  # fmt: skip
