"""Two processes that train together, by gloo on this machine, against one with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training import processes
from offramp.training.app import main
from offramp.training.data.datasets import Dataset
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from offramp.training.record import RECORD, Record, read_record
from tests.training.coded import TAIL, code_text

ROOT = Path(__file__).resolve().parents[2]
FEW = "images = 128\n"
SCHEDULE = f"""
[train.code]
epochs = 1
learning_rate = 0.01
rate = 0.1
{FEW}
[train.restart]
epochs = 1
learning_rate = 0.01
rate = 1.0
distill = 0.5
cutmix = 0.5
{FEW}"""


def few(text: str) -> str:
    """The recipe with four steps an epoch."""
    for rate in ("learning_rate = 0.1\n", "learning_rate = 0.05\n"):
        text = text.replace(rate, rate + FEW)
    return text.replace("epochs = 2", "epochs = 1")


def start(rank: int, port: int, *arguments: Path) -> subprocess.Popen[str]:
    """One of two processes, as torchrun starts them."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.together", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(folder: Path, recipe: Path) -> list[tuple[str, str]]:
    """What two processes print, stdout and stderr, when both have ended well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [start(rank, port, recipe, folder / "bundle", folder / "checkpoints") for rank in (0, 1)]
    try:
        printed = [one.communicate(timeout=150) for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0, 0], printed
    return printed


def losses(record: Record) -> list[tuple[str, float]]:
    return [(epoch.stage, epoch.loss) for epoch in record.history]


@pytest.mark.parametrize("stages", ["the paper's", "with a code"])
def test_two_processes_learn_as_one_with_the_same_batch(
    stages: str, recipe_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Exit 5 sends little: measuring it is quick.
    text = (
        recipe_text.replace("exit = 3", "exit = 7")
        if stages == "the paper's"
        else code_text(recipe_text, SCHEDULE, TAIL + FEW)
    )
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(few(text))
    (tmp_path / "two").mkdir()
    (out, shown), (nothing, silent) = together(tmp_path / "two", recipe)
    alone = [str(recipe), "--out", str(tmp_path / "one"), "--checkpoints", str(tmp_path / "c")]
    assert main([*alone, "--device", "cpu"]) == 0
    capsys.readouterr()
    one, two = read_record(tmp_path / "one" / RECORD), read_record(tmp_path / "two" / "bundle" / RECORD)
    assert len(losses(one)) == (3 if stages == "the paper's" else 6)
    for (stage, expected), (same, found) in zip(losses(one), losses(two), strict=True):
        assert (stage, found) == (same, pytest.approx(expected, rel=2e-4))
    assert two.entropy_steps == [(step, pytest.approx(bits, rel=1e-3)) for step, bits in one.entropy_steps]
    assert two.machine.device == f"2 x {one.machine.device}"
    # The main process alone prints.
    assert json.loads(out)["bundle"] == str(tmp_path / "two" / "bundle")
    assert "base 1/1" in shown and not nothing and "base" not in silent


def test_a_batch_has_to_be_shared_evenly(
    recipe: Recipe, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of the 3 processes, got 32"):
        train(recipe, small, tmp_path)


def test_one_process_has_all_of_a_batch() -> None:
    batch = torch.arange(6)
    assert processes.own(batch) is batch and processes.summed(batch) is batch
    assert (processes.count(), processes.rank()) == (1, 0)


def test_the_second_of_two_has_every_other_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_several", lambda: True)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert processes.own(torch.arange(6)).tolist() == [1, 3, 5]
    share = torch.zeros(3, 2)
    torch.manual_seed(0)
    noise = processes.uniform_like(share)
    torch.manual_seed(0)
    assert torch.equal(noise, torch.rand(6, 2)[1::2])
