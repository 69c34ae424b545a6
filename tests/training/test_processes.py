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
from offramp.training.record import RECORD, read_record
from tests.training.coded import TAIL, code_text
from tests.training.together import losses

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
        [sys.executable, "-W", "error", "-m", "tests.training.together", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(*arguments: Path) -> list[tuple[str, str]]:
    """What two processes print, stdout and stderr, when both have ended well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [start(rank, port, *arguments) for rank in (0, 1)]
    try:
        printed = [one.communicate(timeout=500) for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()
    assert [one.returncode for one in running] == [0, 0], printed
    return printed


# Two more processes that import torch, on a machine that may be busy.
@pytest.mark.timeout(600)
def test_two_processes_learn_as_one_with_the_same_batch(
    recipe_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, coded, two = tmp_path / "plain.toml", tmp_path / "coded.toml", tmp_path / "two"
    plain.write_text(few(recipe_text))
    coded.write_text(few(code_text(recipe_text, SCHEDULE, TAIL + FEW)))
    two.mkdir()
    (out, shown), (nothing, silent) = together(plain, coded, two)

    wanted = losses(plain, tmp_path / "c")
    found = json.loads((two / "losses.json").read_text())
    assert [stage for stage, *_ in found] == ["base", "exit", "regularised"]
    for (stage, loss, figures), (same, other, others) in zip(wanted, found, strict=True):
        assert (same, other) == (stage, pytest.approx(loss, rel=2e-4))
        # Of 364 images one or two are as likely as not.
        assert others == pytest.approx(figures, abs=0.01)

    alone = [str(coded), "--out", str(tmp_path / "one"), "--checkpoints", str(tmp_path / "c")]
    assert main([*alone, "--device", "cpu"]) == 0
    capsys.readouterr()
    one, both = read_record(tmp_path / "one" / RECORD), read_record(two / "bundle" / RECORD)
    stages = [epoch.stage for epoch in both.history]
    assert stages == ["base", "exit", "code", "regularised", "restart", "tail"]
    for mine, theirs in zip(one.history, both.history, strict=True):
        assert theirs.loss == pytest.approx(mine.loss, rel=2e-3), mine.stage
    assert both.machine.device == f"2 x {one.machine.device}"
    # The main process alone prints.
    assert str(two / "bundle") in out and "base 1/1" in shown
    assert not nothing and "base 1/1" not in silent


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
