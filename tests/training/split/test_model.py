"""Every form of MODEL, and what each failure says."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.models.resnet import resnet_32
from offramp.training.split.model import load_model

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def broken():
    raise ValueError("no data\\nmore lines")

def text():
    return "no module"

CONSTANT = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, with a module of the user's, ``my_model_1.py``."""
    (tmp_path / "my_model_1.py").write_text(MODULE)
    (tmp_path / "my_model_2.py").write_text("import surely_not_installed\n")
    (tmp_path / "my_model_3.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "side"), [("vgg19", 32), ("resnet32", 32), ("mobilenetv2", 32), ("vgg-19", 32)]
)
def test_the_papers_by_name(name: str, side: int) -> None:
    model = load_model(name)
    assert model.shape == (3, side, side) and model.name == name and model.preprocessing is None
    assert load_model(name, classes=7, side=64).module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_a_function_of_the_users_in_the_working_directory(own: Path) -> None:
    model = load_model("my_model_1:build", side=48)
    assert model.shape == (3, 48, 48)
    assert model.module(torch.zeros(2, *model.shape)).shape == (2, 2)


def test_weights_of_a_file(tmp_path: Path) -> None:
    trained = resnet_32(10)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "w.pt")
    model = load_model("resnet32", weights=tmp_path / "w.pt")
    assert model.notes == (f"{tmp_path}/w.pt: took the tensors under 'state_dict'",)
    assert torch.equal(next(model.module.parameters()), next(trained.parameters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet33",
            r"resnet33: not a model; expected timm:NAME, torchvision:NAME, hf:DIRECTORY_OR_ID, package",
        ),
        ("net.onnx", r"net\.onnx: an ONNX file cannot be split, because its tail cannot be trained"),
        (
            "surely_not.here:f",
            "surely_not.here:f: no module 'surely_not' here or installed; expected timm:NAME",
        ),
        ("my_model_1:nothing", "my_model_1:nothing: no such function; expected such as build, broken, text"),
        ("my_model_1:CONSTANT", "my_model_1:CONSTANT: no such function"),
        ("my_model_1:broken", "my_model_1:broken: cannot be built: ValueError: no data$"),
        ("my_model_1:text", "my_model_1:text: gives str; expected a torch.nn.Module"),
        ("my_model_2:build", "my_model_2:build: its import needs the package 'surely_not_installed'"),
        ("my_model_3:build", "my_model_3:build: its import failed: ZeroDivisionError"),
        ("hf:./nothing", r"hf:\./nothing: no such directory"),
    ],
)
def test_what_is_not_a_model_is_one_clear_line(own: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        load_model(name)


@pytest.mark.parametrize("name", ["model.onnx", "MODEL.ONNX", "dir/model.onnx"])
def test_an_onnx_file_is_refused_unread_and_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pipe that nobody writes to: whoever opened it would wait.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        ConfigError, match=f"^{name}: an ONNX file cannot be split.* as package.module:function"
    ):
        load_model(name)


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    kind = "hf" if package == "transformers" else package
    with pytest.raises(
        ConfigError, match=f"^{kind}:net: needs the package '{package}': pip install {package}$"
    ):
        load_model(f"{kind}:net")


def test_timm_by_name() -> None:
    pytest.importorskip(
        "torchvision", reason="timm needs torchvision", exc_type=ImportError
    ) if False else None
    model = optional("timm", "timm:mobilenetv3_small_050", classes=5)
    assert model.shape == (3, 224, 224) and model.preprocessing is not None
    assert model.module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(
        ConfigError, match=r"timm:mobilenetv9: timm has no such model; expected such as mobilenet"
    ):
        load_model("timm:mobilenetv9")


def test_torchvision_by_name() -> None:
    model = optional("torchvision", "torchvision:resnet18", side=64)
    assert model.shape == (3, 64, 64) and model.preprocessing is not None
    assert model.preprocessing.side == 64 and model.preprocessing.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match="torchvision:resnet19: torchvision has no such classifier"):
        load_model("torchvision:resnet19")


def test_hugging_face_by_directory(tmp_path: Path) -> None:
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = optional("transformers", f"hf:{tmp_path}", classes=4)
    assert model.shape == (3, 32, 32) and model.preprocessing is None
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert load_model(f"hf:{tmp_path}").preprocessing is not None


def optional(package: str, name: str, **options: Any) -> Any:
    try:
        return load_model(name, **options)
    except ConfigError as error:
        if "needs the package" in str(error):
            pytest.skip(f"{package} is not installed")
        raise
