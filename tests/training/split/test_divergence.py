"""How far outputs are off, by what they are for."""

import numpy as np
import pytest

from offramp.training.split.divergence import KL_ALLOWED, divergence, signal_to_noise


def test_logits_are_judged_by_their_answers() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, 10)).astype(np.float32)
    same = divergence("logits", logits, logits)
    assert (same.kl, same.agreement, same.cost, same.changed) == (0, 1, 0, None)
    # What softmax does not see costs nothing, however many decibels it is.
    shifted = divergence("logits", logits, logits + np.float32(50))
    assert shifted.kl == pytest.approx(0, abs=1e-6) and shifted.decibels < 0
    off = divergence("logits", logits, logits + rng.normal(0, 1, logits.shape).astype(np.float32))
    assert off.kl is not None and off.kl > KL_ALLOWED and off.cost == pytest.approx(off.kl / KL_ALLOWED)
    assert off.agreement is not None and 0.5 < off.agreement < 1
    assert off.text().startswith(
        f"logits: {off.agreement:.1%} the same answers, divergence {off.kl:.4f} nats"
    )


def test_a_code_is_judged_by_its_symbols() -> None:
    code = np.random.default_rng(0).normal(0, 2, (50, 8, 4, 4)).astype(np.float32)
    assert divergence("code", code, code).cost == 0
    near = divergence("code", code, code + np.float32(0.05))
    assert near.changed == pytest.approx(0.05, abs=0.01) and near.cost < 1 and near.kl is None
    far = divergence("code", code, code + np.float32(0.3))
    assert far.changed == pytest.approx(0.3, abs=0.02) and far.cost > 1
    assert "30." in far.text() or "29." in far.text()
    # What is beyond the last symbol is the last symbol.
    assert divergence("code", code + np.float32(1000), code + np.float32(2000)).cost == 0


def test_signal_to_noise() -> None:
    x = np.array([1, -1, 1, -1], np.float32)
    assert signal_to_noise(x, x) == 100
    assert signal_to_noise(x, x + np.float32(0.1)) == pytest.approx(20, abs=0.01)


def test_a_code_of_large_numbers_is_judged_by_its_signal() -> None:
    rng = np.random.default_rng(0)
    code = rng.normal(0, 20, (50, 8, 4, 4)).astype(np.float32)
    near, far = (
        divergence("code", code, code + rng.normal(0, s, code.shape).astype(np.float32)) for s in (1.0, 2.0)
    )
    assert near.changed is not None and near.changed > 0.5
    assert near.cost == pytest.approx(0.5, rel=0.1) and far.cost == pytest.approx(2, rel=0.1)
