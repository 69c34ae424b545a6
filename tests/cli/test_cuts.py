"""``offramp cuts``: the table, the plot, the JSON, and one line for what cannot be cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.cli import app, cuts
from offramp.common.errors import ConfigError

MODULE = """
import torch
from torch import nn

class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 9, stride=4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean(2))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, 1)
        self.wide = nn.Conv2d(16, 96, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.wide(torch.relu(self.conv(x)))).mean((2, 3))

class Never(nn.Module):
    def forward(self, x):
        return (x + x.relu()).flatten(1) if False else x.mean((2, 3))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_cut_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_of_the_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["cuts", "resnet32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet32: input 3×32×32, 10 classes, 68.86 M MACs, 0.4642 M weights"
    header = next(number for number, line in enumerate(lines) if line.startswith("cut after"))
    assert lines[header].split() == [
        *("cut", "after", "crosses", "bytes", "head", "MACs"),
        *("head", "weights", "tail", "weights", "holds"),
    ]
    rows = {line.split()[0]: line.split()[1:] for line in lines[header + 1 : lines.index("", header)]}
    # The paper's split: after the second block.
    assert rows["blocks.6"][:2] == ["16×32×32", "16,384"]
    assert len({len(line) for line in lines[header : lines.index("", header)]}) == 1
    assert "Inside blocks several tensors cross" in lines[-1]


def test_all_cuts_are_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    cuts.main(["vgg19"])
    few = capsys.readouterr().out
    cuts.main(["vgg19", "--all"])
    assert len(capsys.readouterr().out.splitlines()) > len(few.splitlines())


def test_json_has_every_cut(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts.main(["my_cut_models:Sound", "--shape", "1x400", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["input"], found["classes"], found["preprocessing"]) == ([1, 400], 3, None)
    assert [cut["name"] for cut in found["cuts"]] == ["conv", "relu", "mean"]
    conv = found["cuts"][0]
    assert (conv["shape"], conv["int8_bytes"]) == ([4, 98], 392)
    assert conv["head"] == {"macs": 4 * 9 * 98, "weights": 40} and conv["tail"] == {"macs": 12, "weights": 15}
    assert found["macs"] == 4 * 9 * 98 + 12


def test_heads_that_fit_a_microcontroller_are_marked(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["my_cut_models:Small", "--shape", "3x32x32", "--ram", "6k", "--flash", "1m"]
    assert cuts.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[-3:] for line in lines if line.startswith(("conv", "wide", "pool"))}
    assert rows["pool"] == ["not", "in", "C"]
    assert (rows["conv"][-1], rows["wide"][-1]) == ("yes", "no")

    assert cuts.main([*arguments, "--json"]) == 0
    found = {cut["name"]: cut["microcontroller"] for cut in json.loads(capsys.readouterr().out)["cuts"]}
    assert found["pool"] is None and not found["wide"]["fits"] and found["conv"]["fits"]
    # The symbols whole, a row, and the kernel's pixels.
    assert found["conv"]["ram_bytes"] > 16 * 16 * 16


@pytest.mark.parametrize("suffix", cuts.PLOT_SUFFIXES)
def test_a_plot(own: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [own / f"{name}{suffix}" for name in "ab"]
    for file in files:
        cuts.main(["my_cut_models:Sound", "--shape", "1x400", "--plot", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet33"], "resnet33: not a model; expected timm:NAME"),
        (["resnet32", "--plot", "a.bmp"], r"--plot a\.bmp: expected a file named \.png, \.svg, \.pdf"),
        (
            ["my_cut_models:Sound", "--shape", "1x400", "--plot", "no/a.png"],
            "--plot no/a.png: cannot be written: No",
        ),
        (["resnet32", "--side", "0"], "--side: '0': expected a whole number"),
        (["resnet32", "--side", "9", "--shape", "3x9x9"], "not allowed with argument --side"),
        (["resnet32", "--shape", "3x"], "--shape: '3x': expected numbers with x between"),
        (["my_cut_models:Whole", "--shape", "7"], r"my_cut_models:Whole: does not run on float32 \[2, 7\]"),
        (["my_cut_models:Never"], "my_cut_models:Never: nowhere does one tensor cross alone"),
        (["resnet32", "--weights", "none.pt"], "none.pt: No such file"),
    ],
)
def test_what_cannot_be_cut_is_one_line(own: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cuts.main(arguments)
    assert "\n" not in str(caught.value)


def test_its_help_needs_no_torch() -> None:
    code = (
        "import sys; from offramp.cli import cuts\n"
        "try: cuts.main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False" and "usage: offramp cuts" in ran.stdout
