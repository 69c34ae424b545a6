"""Files of weights: those that fit are taken, all others are one line that says why."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.split.weights import load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


@pytest.fixture
def trained() -> dict[str, Tensor]:
    return {
        name: torch.randn_like(t) if t.is_floating_point() else t
        for name, t in network().state_dict().items()
    }


def holds(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_a_state_dict_is_taken_silently(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    module = network()
    torch.save(trained, tmp_path / "w.pt")
    assert load_weights(module, tmp_path / "w.pt") == ()
    assert holds(module, trained)


def test_safetensors_are_taken(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra [split]")
    module = network()
    for name in ("w.safetensors", "w.bin"):
        safetensors.save_file(trained, tmp_path / name)
        assert load_weights(module, tmp_path / name) == ()
        assert holds(module, trained)


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda t: {"state_dict": t, "epoch": 3}, ("took the tensors under 'state_dict'",)),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, ("left out 'module.' before each name",)),
        (
            lambda t: {"model": {f"module.model.{k}": v for k, v in t.items()}, "optimizer": {}},
            (
                "took the tensors under 'model'",
                "left out 'module.' before each name",
                "left out 'model.' before each name",
            ),
        ),
    ],
    ids=["wrapped", "parallel", "nested"],
)
def test_what_training_programs_save_is_taken_and_said(
    tmp_path: Path, trained: dict[str, Tensor], wrap: Callable[[object], object], notes: tuple[str, ...]
) -> None:
    module = network()
    torch.save(wrap(trained), tmp_path / "w.pt")
    assert load_weights(module, tmp_path / "w.pt") == notes
    assert holds(module, trained)


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.save({k: v for k, v in trained.items() if "num_batches" not in k}, tmp_path / "w.pt")
    assert load_weights(network(), tmp_path / "w.pt") == ()


def test_tensors_that_do_not_fit_are_counted_and_the_first_named(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del trained["0.weight"]
    trained |= {f"extra.{n}": torch.zeros(1) for n in range(5)}
    trained["3.weight"] = torch.zeros(7, 16)
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as caught:
        load_weights(module, tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path}/w.pt: its tensors do not fit the model: 1 of the model's 9 are missing (0.weight); "
        "5 of the file's 13 are not in the model (extra.0, extra.1, extra.2, …); "
        "1 have another shape (3.weight: [7, 16], the model's [5, 16])"
    )
    assert holds(module, before)


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("plain", [False, True], ids=["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, plain: bool) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "ran"
    hostile = {"0.weight": Hostile(f"touch {mark}")}
    if plain:
        path.write_bytes(pickle.dumps(hostile, protocol=2))
    else:
        torch.save(hostile, path)
    with pytest.raises(ConfigError, match=r"w\.pt: refused: .*\(it asks for posix\.system\)") as caught:
        load_weights(network(), path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def whole_module(path: Path) -> None:
    torch.save(network(), path)


def damaged(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def not_finite(path: Path) -> None:
    tensors = network().state_dict()
    tensors["3.bias"][2] = float("nan")
    torch.save(tensors, path)


def huge_header(path: Path) -> None:
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{" + b"x" * 20)


def lying_header(path: Path) -> None:
    header = json.dumps(
        {"0.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (whole_module, r"refused: it is more than tensors in plain containers"),
        (damaged, "a damaged torch.save file: "),
        (not_finite, r"'3\.bias' has values that are not finite"),
        (
            lambda path: path.write_bytes(b"hello world, no weights"),
            "not a safetensors file or a torch.save file",
        ),
        (lambda path: path.write_bytes(b""), "not a safetensors file or a torch.save file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file or directory; expected a file of weights"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds list; expected tensors by name"),
        (lambda path: torch.save({}, path), "holds dict, empty; expected tensors by name"),
        (
            lambda path: torch.save({"a": torch.zeros(2), "b": 3}, path),
            "'b' is int; expected tensors by name",
        ),
        (lambda path: path.write_bytes(b"\x80\x02]q\x00."), "holds list, empty|damaged"),
    ],
)
def test_a_file_that_is_no_good_is_one_clear_line(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(ConfigError, match=f"^{path}: {message}") as caught:
        load_weights(network(), path)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(ConfigError, match=f"^{path}: an ONNX file; expected safetensors, or torch.save"):
        load_weights(network(), path)


@pytest.mark.parametrize("write", [huge_header, lying_header])
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    pytest.importorskip("safetensors", reason="needs the extra [split]")
    path = tmp_path / "w.safetensors"
    write(path)
    with pytest.raises(ConfigError, match="a damaged safetensors file: ") as caught:
        load_weights(network(), path)
    assert "\n" not in str(caught.value)
