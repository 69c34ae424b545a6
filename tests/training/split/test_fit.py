"""A code that is fitted to a tail's answers: it learns them, keeps to its bytes, and goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp.common.errors import ConfigError
from offramp.training.split import fit
from offramp.training.split.cache import Cached
from offramp.training.split.code import Code, CodeShape, rounded
from offramp.training.split.layout import Layout
from offramp.training.split.work import Clock, Stage

SHAPE = (6, 4, 4)


def tail() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 4)).eval()


def cached() -> Cached:
    """Activations that four directions explain, and what the tail makes of them."""
    rng = np.random.default_rng(0)
    activations = rng.normal(0, 2, (400, 4)) @ rng.normal(0, 1, (4, 96))
    activations = (activations + rng.normal(0, 0.1, activations.shape)).reshape(-1, *SHAPE)
    with torch.no_grad():
        logits = tail()(torch.from_numpy(activations.astype(np.float32))).numpy()
    return Cached(activations.astype(np.float16), logits)


def code() -> Code:
    torch.manual_seed(2)
    return Code(Layout.of(SHAPE), CodeShape(6, 0, 16), 4, torch.zeros(6), torch.full((6,), 4.0))


def run(
    ours: Code,
    folder: Path,
    target: float,
    steps: int = 150,
    tick: Callable[[fit.State], object] = lambda _: None,
    rho: tuple[float, ...] = (),
) -> fit.State:
    stage = Stage(folder, {}, print)
    settings = fit.Settings((target,), steps, 0, rho=rho)
    ours.begin(tail(), cached().sample(), target=target, seed=0)
    return fit.fit([ours], [tail()], cached(), settings, stage, Clock(None), until=1, tick=tick)


def agreement(ours: Code) -> tuple[float, float]:
    """How often early exit and tail answer as the tail does on what was not coded."""
    data = cached()
    x, logits = data.batch(torch.arange(400))
    with torch.no_grad():
        features = ours.features(x)
        early = ours.exit(features).argmax(1)
        final = tail()(ours.decoder(rounded(ours.encode(x, features)))).argmax(1)
    wanted = logits.argmax(1)
    return float((early == wanted).float().mean()), float((final == wanted).float().mean())


def test_it_learns_and_fewer_bytes_cost_fewer(tmp_path: Path) -> None:
    wide, narrow = code(), code()
    many, few = run(wide, tmp_path / "a", 80), run(narrow, tmp_path / "b", 15)
    assert not wide.training and many.step == 150
    assert min(agreement(wide)) > 0.6
    assert few.bytes < 0.85 * many.bytes and few.rate_weights > many.rate_weights


def test_each_exit_has_its_weight(tmp_path: Path) -> None:
    learned = []
    for number, rho in enumerate(((), (0.7, 1.0), (0.0, 1.0))):
        ours = code()
        run(ours, tmp_path / str(number), 40, steps=2, rho=rho)
        learned.append(torch.cat([each.flatten() for each in ours.features.parameters()]))
    assert torch.equal(learned[0], learned[1]) and not torch.equal(learned[0], learned[2])
    for wrong, count in (((1.0,), "1 number"), ((1.0,) * 4, "4 numbers")):
        with pytest.raises(ConfigError, match=rf"^rho: {count}; expected 3, one for each exit"):
            fit.rho_of(wrong, 2)


def test_what_was_interrupted_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = code()
    run(whole, tmp_path / "whole", 40, steps=12)
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)

    def stop(state: fit.State) -> None:
        if state.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(code(), tmp_path / "broken", 40, steps=12, tick=stop)
    again = code()
    assert run(again, tmp_path / "broken", 40, steps=12).step == 12
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_codes_at_two_cuts_are_trained_together(tmp_path: Path) -> None:
    first, second = code(), code()
    x, logits = cached().batch(torch.arange(400))

    def right() -> float:
        with torch.no_grad():
            found = x
            for each in (first, second):
                found = each.decoder(rounded(each.encode(found, each.features(found))))
            found = tail()(found).argmax(1)
        return float((found == logits.argmax(1)).float().mean())

    for each in (first, second):
        each.begin(tail(), x, target=60, seed=0)
    settings = fit.Settings((60, 20), 60, 0, (1e-3, 2e-3))
    stage = Stage(tmp_path, {}, print)
    both = (first, second), (nn.Identity(), tail())
    state = fit.fit(*both, cached(), settings, stage, Clock(None), until=1)
    assert len(state.sizes) == 2 and state.sizes[1] < state.sizes[0] and right() > 0.6
    assert not (first.training or second.training)
    # What is kept of it is both.
    again = code(), code()
    kept = fit.fit(again, both[1], cached(), settings, stage, Clock(None), until=1)
    assert kept.sizes == state.sizes and torch.equal(again[1].correction.weight, second.correction.weight)


def test_a_channel_that_hardly_moves_gets_a_floor() -> None:
    x = torch.randn(50, 3, 4, 4)
    x[:, 2] = 1.0
    mean, std = fit.channel_statistics(x)
    assert mean[2] == 1 and 0.03 < float(std[2]) < 0.1
    assert fit.channel_statistics(torch.ones(5, 2, 3, 3))[1].tolist() == [1.0, 1.0]
