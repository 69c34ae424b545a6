from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.hardware import Hardware
from offramp.training.loop import Trained, train
from offramp.training.recipe import Recipe


def digest(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.model.state_dict().items()}


def test_a_second_run_in_the_same_process_may_have_another_precision() -> None:
    kinds = []
    for precision in ("float32", "bfloat16", "float32"):
        with Hardware(precision=precision).autocast():
            kinds.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert kinds == [torch.float32, torch.bfloat16, torch.float32]


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--precision float16: expected a GPU"):
        Hardware(precision="float16")


def test_one_process_has_everything_to_itself() -> None:
    hardware = Hardware()
    assert hardware.is_main and not hardware.captures
    assert hardware.any(True) and not hardware.any(False)
    assert hardware.summed({"a": 0.1}) == {"a": 0.1}
    assert hardware.from_main(lambda: 3) == 3
    assert hardware.describe()["precision"] == "float32"


def test_bfloat16_trains_as_well(recipe: Recipe, few: Dataset, tmp_path: Path) -> None:
    trained = train(recipe, few, tmp_path, hardware=Hardware(precision="bfloat16"))
    exact = train(recipe, few, tmp_path / "exact")
    assert digest(trained) != digest(exact)
    for stage in (0, -1):
        assert trained.epochs[stage].loss == pytest.approx(exact.epochs[stage].loss, rel=0.1)
    assert {value.dtype for value in trained.model.parameters()} == {torch.float32}
