"""Activations that are computed once: what they are, and that an interruption changes nothing of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Labelled
from offramp.training.split import cache
from offramp.training.split.photos import Normalise
from offramp.training.split.work import Stage

SHAPE = (3, 8, 8)
NORMALISE = Normalise((0.5,) * 3, (0.25,) * 3)


def data(count: int = 150) -> Labelled:
    rng = np.random.default_rng(0)
    return Labelled(rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8), np.zeros(count, np.int64))


def tail(x: Tensor) -> Tensor:
    return x.mean((2, 3))[:, :2]


def fill(folder: Path, head: object = torch.nn.Identity(), versions: int = 3) -> cache.Cached:
    stage = Stage(folder, {}, print)
    plan = cache.Plan(versions, flip=True, seed=1)
    return cache.fill(stage, head, tail, data(), NORMALISE, plan, shape=SHAPE, classes=2)  # type: ignore[arg-type]


def test_the_first_version_is_the_photo_itself(tmp_path: Path) -> None:
    found = fill(tmp_path)
    assert found.activations.shape == (450, *SHAPE) and found.logits.shape == (450, 2)
    plain = NORMALISE(torch.from_numpy(data().images))
    activations, logits = found.batch(torch.arange(150))
    assert torch.allclose(activations, plain, atol=2e-3)
    assert torch.allclose(logits, tail(plain), atol=2e-2)
    assert not torch.allclose(found.batch(torch.arange(150, 300))[0], plain, atol=0.1)


def test_what_was_interrupted_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fill(tmp_path / "whole")
    calls: list[int] = []

    def interrupted(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 21:
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr(cache, "BATCH", 20)
    expected = fill(tmp_path / "expected")
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "broken", interrupted)
    again: list[int] = []

    def counted(x: Tensor) -> Tensor:
        again.append(len(x))
        return x

    found = fill(tmp_path / "broken", counted)
    # Sixteen chunks of 24 were written down.
    assert len(again) == 8
    assert np.array_equal(found.activations, expected.activations)
    assert np.array_equal(found.logits, expected.logits)
    assert np.array_equal(whole.activations[:150], expected.activations[:150])


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="values pass 65,504"):
        fill(tmp_path, lambda x: x * 1e6)


def test_versions_are_what_time_and_space_allow() -> None:
    assert cache.versions_for(1000, (80, 10, 10), seconds_a_photo=0.01, left=25) == 2
    assert cache.versions_for(1000, (80, 10, 10), seconds_a_photo=0.01, left=0) == 1
    assert cache.versions_for(1000, (80, 10, 10), seconds_a_photo=0.01, left=1e9) == 8
    assert cache.versions_for(100_000, (80, 100, 100), seconds_a_photo=0, left=1) == 1
