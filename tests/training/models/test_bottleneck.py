"""The rate-trained split: its density, its place in a model, its training, and its graphs."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import to_float
from offramp.training.export import export
from offramp.training.models.bottleneck import (
    ZERO_POINT,
    Bottleneck,
    BottleneckShape,
    Context,
    Density,
    Rounding,
)
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize
from offramp.training.quantize.quantized import WHOLE


def test_the_density_of_a_channel_sums_to_one_over_all_symbols() -> None:
    torch.manual_seed(0)
    density = Density((5, 1, 1))
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(torch.randn_like(parameter))
        symbols = torch.arange(-4000.0, 4001.0)
        planes = [s.expand(1, 5, 1, 1) for s in symbols]
        bits = torch.stack([density.bits(plane, plane, learn=False) for plane in planes], dim=1)
    # Each of the symbols that are as good as impossible is charged 24 bits.
    assert (2.0**-bits).sum(dim=1).numpy() == pytest.approx(np.ones(5), abs=8001 * 2.0**-24 + 1e-4)


def test_the_estimate_is_the_cross_entropy_of_the_symbols() -> None:
    """Fitted to symbols of known distribution, the density charges their entropy."""
    torch.manual_seed(1)
    shares = torch.tensor([0.05, 0.15, 0.6, 0.15, 0.05])
    drawn = torch.multinomial(shares, 16 * 64, replacement=True).view(16, 1, 8, 8).float() - 2
    density = Density((1, 8, 8))
    optimizer = torch.optim.Adam(density.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        bits = density.bits(drawn, drawn, learn=True).sum()
        bits.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seen = torch.bincount((drawn + 2).long().flatten()) / drawn.numel()
    entropy = float(-(seen * seen.log2()).sum()) * 64
    assert entropy <= bits.item() < 1.02 * entropy


@pytest.mark.parametrize("channel", range(3))
def test_a_context_is_only_what_is_coded_before(channel: int) -> None:
    """A symbol changes the distribution of those that `common.context` tells from it, and of no other."""
    torch.manual_seed(4)
    context = Context((3, 4, 5))
    with torch.no_grad():
        context.weight.add_(torch.rand_like(context.weight) + 0.1)
        symbols = torch.zeros(1, 3, 4, 5)
        before = torch.cat(context(symbols, learn=True))
        symbols[0, channel, 1, 2] = 1
        changed = torch.cat(context(symbols, learn=True)) != before
    wanted = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    wanted[:, channel + 1 :, 1, 2] = True
    for row, column in ((1, 3), (2, 1), (2, 2), (2, 3)):
        wanted[:, :, row, column] = True
    assert torch.equal(changed, wanted)


def test_a_context_tells_a_symbol_from_its_neighbours() -> None:
    """Each symbol is the one at its left or one more, so it costs a bit; without a context it costs more."""
    torch.manual_seed(5)
    steps = torch.randint(2, (2, 64, 2, 4, 3)).float()
    # Half to learn from, half to measure by: what was learned by heart costs less than it can elsewhere.
    seen, fresh = torch.cat([torch.zeros(2, 64, 2, 4, 1), steps], dim=4).cumsum(dim=4) - 1
    bits = {}
    for context in (False, True):
        density = Density((2, 4, 4), context=context)
        optimizer = torch.optim.Adam(density.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            density.bits(seen, seen, learn=True).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        bits[context] = density.bits(fresh, fresh, learn=False).sum().item()
    assert steps[0, 0].numel() * 0.98 <= bits[True] < 0.85 * bits[False]


@pytest.mark.parametrize("context", [False, True])
def test_each_of_the_two_estimates_moves_only_what_it_is_for(context: bool) -> None:
    torch.manual_seed(2)
    narrow = Bottleneck((8, 8, 8), BottleneckShape(3, 2, 16), context=context).train()
    code = torch.randn(2, 3, 4, 4, requires_grad=True)
    rate, fit = narrow.bits(code)
    rate.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert code.grad is not None and code.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in narrow.density.parameters())
    code.grad = None
    fit.backward()  # type: ignore[no-untyped-call]
    assert code.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in narrow.density.parameters())


def test_rounding_keeps_to_what_a_byte_holds_and_to_the_gradient_inside() -> None:
    x = torch.tensor([-500.0, -0.6, 0.4, 3.5, 500.0], requires_grad=True)
    rounded = Rounding()(x)
    assert rounded.tolist() == [-ZERO_POINT, -1, 0, 4, 255 - ZERO_POINT]
    rounded.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_stride_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="a stride of 8 does not divide a 12x12 activation"):
        Bottleneck((4, 12, 12), BottleneckShape(4, 8, 8))


@pytest.mark.parametrize(
    ("backbone", "exit_number", "stride", "growth", "exit_behind"),
    [("tiny", 1, 2, 1, False), ("tiny", 5, 4, 2, True), ("mobilenet-v2", 12, 2, 1, True)],
)
def test_the_graphs_send_the_models_own_symbols(
    backbone: str, exit_number: int, stride: int, growth: int, exit_behind: bool
) -> None:
    torch.manual_seed(exit_number)
    model = SplitModel(BACKBONES[backbone](10, 32), exit_number)
    narrow = Bottleneck(model.exit_shape, BottleneckShape(8, stride, 16, growth))
    model.insert(narrow, exit_behind=exit_behind)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    pixels = pixels.repeat(4, axis=2).repeat(4, axis=3)
    images = to_float(torch.from_numpy(pixels))
    with torch.no_grad():
        for _ in range(10):
            model.train()(images)
        out = model.eval()(images)
    quantized = quantize(model, images)
    assert quantized.symbols == WHOLE
    graphs = export(quantized)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    head, tail = (
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for graph in (graphs.head, graphs.tail)
    )
    symbols, early = head.run(["symbols", "logits"], {"image": pixels})
    assert symbols.shape == (16, *model.split_shape)
    (final,) = tail.run(["logits"], {"symbols": symbols})
    assert model.bottleneck is not None
    wanted = model.bottleneck.rounding(out.activation).numpy() + ZERO_POINT
    # Rounded to a whole number, what 8-bit layers add moves some symbols by one.
    apart = np.abs(symbols.astype(int) - wanted)
    assert apart.mean() < 0.12
    for found, reference in ((early, out.early.numpy()), (final, out.final.numpy())):
        assert np.abs(found - reference).mean() / reference.std() < 0.2
