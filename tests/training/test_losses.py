import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offramp.common.errors import ConfigError
from offramp.training.losses import EntropyLoss, entropy_bits, objective, soft_histogram, sparsity_loss


def brute_force(x: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Eq. (4) and (5) as they are written: the full matrix of weights, in float64."""
    nodes = np.linspace(0.0, 1.0, bins)
    inside = x[(x >= 0) & (x <= 1)]
    weights = np.clip(1 - np.abs(inside[:, None] - nodes[None, :]) * (bins - 1), 0, None)
    return np.asarray(weights.sum(axis=0) / max(1, len(inside)), np.float64)


@pytest.mark.parametrize("bins", [2, 3, 16, 256])
def test_histogram_is_the_brute_force_one(bins: int) -> None:
    x = np.random.default_rng(bins).normal(0.5, 0.3, 5000)
    found = soft_histogram(torch.from_numpy(x), bins).numpy()
    np.testing.assert_allclose(found, brute_force(x, bins), rtol=0, atol=1e-12)
    single = soft_histogram(torch.from_numpy(x).float().view(50, 100), bins)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), brute_force(x, bins), rtol=0, atol=1e-5)


@given(
    samples=st.lists(st.floats(-2, 3, allow_nan=False), min_size=1, max_size=60),
    bins=st.integers(2, 64),
)
@settings(deadline=None)
def test_histogram_sums_to_one_over_the_samples_in_range(samples: list[float], bins: int) -> None:
    x = np.array(samples)
    found = soft_histogram(torch.from_numpy(x), bins)
    anything = bool(((x >= 0) & (x <= 1)).any())
    assert found.shape == (bins,)
    assert float(found.min()) >= 0
    assert float(found.sum()) == pytest.approx(1.0 if anything else 0.0, abs=1e-9)
    np.testing.assert_allclose(found.numpy(), brute_force(x, bins), rtol=0, atol=1e-9)


def test_samples_on_nodes_and_at_both_ends() -> None:
    found = soft_histogram(torch.tensor([0.0, 0.25, 1.0, 1.0], dtype=torch.float64), 5)
    assert found.tolist() == [0.25, 0.25, 0.0, 0.0, 0.5]


def test_gradients_of_the_histogram_and_of_its_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    # Off the nodes, where the triangles have corners; some of them outside the range.
    cells = torch.randint(-2, 11, (40,), generator=generator)
    offset = torch.rand(40, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    x = ((cells + offset) / 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_histogram(v, 10), (x,))
    assert torch.autograd.gradcheck(lambda v: entropy_bits(soft_histogram(v, 10)), (x,))
    (gradient,) = torch.autograd.grad(entropy_bits(soft_histogram(x, 10)), x)
    assert bool((gradient[(x < 0) | (x > 1)] == 0).all())
    assert bool((gradient[(x > 0) & (x < 1)] != 0).any())


def test_gradients_of_the_loss_with_fixed_running_values() -> None:
    loss = EntropyLoss(2.0, bins=8).double().eval()
    loss.mean.fill_(0.1)
    loss.std.fill_(0.5)
    x = torch.linspace(-1.31, 1.49, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x,))


def test_loss_is_the_brute_force_equation_3() -> None:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 1
    x[0, 0, 0, 0] = 1000.0  # an outlier, far outside 3 sigma
    loss = EntropyLoss(0.7, bins=32).train()
    found = float(loss(x))
    mean, std = float(loss.mean), float(loss.std)
    assert mean == pytest.approx(float(x.mean()), rel=1e-6)
    assert std == pytest.approx(float(x.std()), rel=1e-6)
    histogram = brute_force((x.numpy().ravel() - (mean - 3 * std)) / (6 * std), 32)
    assert histogram.sum() == pytest.approx(1)
    bits = -sum(h * math.log2(h) for h in histogram if h > 0)
    assert found == pytest.approx(0.7 * bits / math.log2(32), abs=1e-6)


def test_running_values_move_in_training_only() -> None:
    loss = EntropyLoss(1.0, momentum=0.25).train()
    loss(torch.full((2, 1, 2, 2), 4.0) + torch.tensor([1.0, -1.0]))
    assert float(loss.mean) == pytest.approx(4.0)
    loss(torch.zeros(2, 1, 2, 2))
    assert float(loss.mean) == pytest.approx(3.0)
    loss.eval()
    loss(torch.full((2, 1, 2, 2), 100.0))
    assert float(loss.mean) == pytest.approx(3.0)
    assert set(loss.state_dict()) == {"mean", "std", "batches"}


def test_entropy_extremes() -> None:
    uniform = torch.full((256,), 1 / 256, dtype=torch.float64)
    assert float(entropy_bits(uniform)) == pytest.approx(8.0)
    one = torch.zeros(256, dtype=torch.float64)
    one[7] = 1
    assert float(entropy_bits(one)) == pytest.approx(0.0, abs=1e-9)
    constant = torch.full((4, 2, 3, 3), 5.0, requires_grad=True)
    value = EntropyLoss(1.0).train()(constant)
    value.backward()
    assert constant.grad is not None
    assert bool(torch.isfinite(constant.grad).all())


def test_objective_is_equation_1() -> None:
    generator = torch.Generator().manual_seed(2)
    early, final = torch.randn(2, 6, 4, generator=generator)
    labels = torch.randint(0, 4, (6,), generator=generator)
    parts = [torch.nn.functional.cross_entropy(x, labels) for x in (early, final)]
    assert torch.allclose(objective([early, final], labels), (parts[0] + parts[1]) / 2)
    assert torch.allclose(objective([early, final], labels, [0.2, 1.5]), 0.2 * parts[0] + 1.5 * parts[1])
    with pytest.raises(ConfigError, match="2 exits need 2 weights"):
        objective([early, final], labels, [1.0])


def test_sparsity_is_equation_6() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    assert float(sparsity_loss(x, 0.5)) == pytest.approx(1.0)


def test_a_histogram_needs_two_bins() -> None:
    with pytest.raises(ConfigError, match="at least 2 bins"):
        soft_histogram(torch.zeros(3), 1)


def test_what_is_no_number_is_an_outlier() -> None:
    found = soft_histogram(torch.tensor([0.0, float("nan"), float("inf"), -float("inf")]), 3)
    assert found.tolist() == [1.0, 0.0, 0.0]
