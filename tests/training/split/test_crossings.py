"""Codes at two cuts: each learns on what the one before it lets through; what was done is not repeated."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.capture import capture
from offramp.training.split.classifier import Made
from offramp.training.split.code import rounded
from offramp.training.split.crossings import Fitted, fit_codes
from offramp.training.split.cuts import find_cuts
from offramp.training.split.photos import Normalise, fast
from offramp.training.split.place import Wanted, choose_places
from offramp.training.split.run import Display, Job
from offramp.training.split.shares import Shares
from offramp.training.split.work import Clock
from tests.training.split import tiny

NORMALISE = Normalise((0.5,) * 3, (0.5,) * 3)


def data() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 3, tiny.SIDE, tiny.SIDE)).astype(np.uint8)
    part = Labelled(images, np.arange(70) % 3)
    return Dataset("noise", tiny.CLASSES, part, part, part, "0" * 64)


def run(
    out: Path,
    *cuts: str,
    joint: int = 0,
    said: list[str] | None = None,
    learn_tail: bool = False,
    module: nn.Module | None = None,
) -> Fitted:
    module = module or tiny.knows().eval()
    captured = capture(module, (3, tiny.SIDE, tiny.SIDE))
    job = Job("tiny", out, out, cuts=cuts, bytes=20.0, steps=4, versions=2, joint=joint, minutes=None)
    job = replace(job, learn_tail=learn_tail)
    places = choose_places(find_cuts(captured), Wanted(None, None, None, None, 20.0, cuts))
    say = said.append if said is not None else lambda _: None
    display = Display(say, lambda _: nullcontext(lambda *_: None))
    made = Made(module, captured, "")
    return fit_codes(job, made, places, data(), NORMALISE, Clock(None), Shares(1, 1, 1), display)


def test_the_second_code_learns_on_what_the_first_lets_through(tmp_path: Path) -> None:
    fitted = run(tmp_path, "0", "2")
    assert len(fitted.parts) == 3 and len(fitted.codes) == 2
    first = np.fromfile(tmp_path / "work" / "cache" / "activations.f16", np.float16).reshape(140, 8, 16, 16)
    second = np.fromfile(tmp_path / "work" / "cache-2" / "activations.f16", np.float16)
    code = fitted.codes[0]
    with torch.no_grad(), fast():
        x = torch.from_numpy(first).float()
        decoded = code.decoder(rounded(code.encode(x, code.features(x))))
        wanted = fitted.parts[1](decoded).float()
    # Within float16, and bfloat16 where the CPU has it: batches of another size may round otherwise.
    assert np.abs(second.reshape(wanted.shape) - wanted.numpy()).mean() < 0.05 * wanted.abs().mean()
    # The first code is the one of a pair.
    alone = run(tmp_path / "pair", "0")
    assert all(torch.equal(a, b) for a, b in zip(code.parameters(), alone.codes[0].parameters(), strict=True))


def test_codes_are_trained_together_and_nothing_is_done_twice(tmp_path: Path) -> None:
    said: list[str] = []
    before = run(tmp_path, "0", "2", joint=3, said=said)
    assert any(line.startswith("together they took 3 steps more") for line in said)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.pt")}
    assert {path.parent.name for path in written} == {"code", "code-2", "joint"}
    again = run(tmp_path, "0", "2", joint=3)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for a, b in zip(before.codes, again.codes, strict=True):
        assert torch.equal(a.correction.weight, b.correction.weight)
    one_after_the_other = run(tmp_path, "0", "2")
    assert not torch.equal(one_after_the_other.codes[0].correction.weight, before.codes[0].correction.weight)


@pytest.mark.parametrize(("cuts", "joint"), [(("0",), 0), (("0", "2"), 3)])
def test_what_is_behind_the_last_cut_learns_and_the_classifier_stays(
    tmp_path: Path, cuts: tuple[str, ...], joint: int
) -> None:
    module = tiny.knows().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    frozen = run(tmp_path / "frozen", *cuts, joint=joint)
    fitted = run(tmp_path / "learned", *cuts, joint=joint, learn_tail=True, module=module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    *between, tail = fitted.parts
    learned, old = tail.state_dict(), frozen.parts[-1].state_dict()
    assert learned.keys() == old.keys()
    assert not any(torch.equal(value, old[name]) for name, value in learned.items() if "weight" in name)
    for part, kept in zip(between, frozen.parts[:-1], strict=True):
        assert all(torch.equal(value, kept.state_dict()[name]) for name, value in part.state_dict().items())
    # From what is kept of it: the same again, with nothing trained.
    again = run(tmp_path / "learned", *cuts, joint=joint, learn_tail=True)
    assert all(torch.equal(value, learned[name]) for name, value in again.parts[-1].state_dict().items())
