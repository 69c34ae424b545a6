"""Two processes that train together, by gloo on this machine, against one with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError
from offramp.training import processes
from offramp.training.data.datasets import Dataset
from offramp.training.data.sources import load
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from tests.training.coded import TAIL, code_text

ROOT = Path(__file__).resolve().parents[2]
FEW = "images = 64\n"
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
    """The recipe with two steps an epoch."""
    for rate in ("learning_rate = 0.1\n", "learning_rate = 0.05\n"):
        text = text.replace(rate, rate + FEW)
    return text.replace("epochs = 2", "epochs = 1")


def start(rank: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """One of two processes, as torchrun starts them."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.training.together", str(folder)],
        cwd=ROOT,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(folder: Path) -> list[tuple[str, str]]:
    """What two processes print, stdout and stderr, when both have ended well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [start(rank, port, folder) for rank in (0, 1)]
    try:
        printed = [one.communicate(timeout=800) for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()
    assert [one.returncode for one in running] == [0, 0], printed
    return printed


# Two more processes that import torch, on a machine that may be busy.
@pytest.mark.timeout(900)
def test_two_processes_learn_as_one_with_the_same_batch(recipe_text: str, tmp_path: Path) -> None:
    texts = {"plain": recipe_text, "coded": code_text(recipe_text, SCHEDULE, TAIL + FEW)}
    wanted: dict[str, float] = {}
    for kind, text in texts.items():
        (tmp_path / f"{kind}.toml").write_text(few(text))
        recipe = Recipe.parse(few(text))
        data = load(recipe.data, seed=recipe.seed)
        for epoch in train(recipe, data, tmp_path / "alone", resume=True).epochs:
            wanted[f"{kind} {epoch.stage}"] = epoch.loss
    (out, shown), (nothing, silent) = together(tmp_path)

    found = json.loads((tmp_path / "losses.json").read_text())
    stages = ["base", "exit", "regularised"]
    coded = ["exit", "code", "regularised", "restart", "tail"]
    assert list(found) == [f"plain {stage}" for stage in stages] + [f"coded {stage}" for stage in coded]
    for stage, loss in found.items():
        # Two steps: the second one's weights differ by the rounding of the first one's sums.
        # The code stage's error is in units of the variance in each process's own share.
        rel = 0.05 if stage == "coded code" else 1e-4
        assert loss == pytest.approx(wanted[stage], rel=rel), stage
    # The main process alone writes and prints.
    assert str(tmp_path / "bundle") in out and "quantizing" in shown
    assert not nothing and "quantizing" not in silent
    assert load_bundle(tmp_path / "bundle").manifest.name == "tiny-digits"


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
