import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from offramp.common.errors import DataError
from offramp.common.part.session import session
from offramp.training.calibrate.code_step import with_step
from offramp.training.data.datasets import to_float
from offramp.training.export import Graphs, export
from offramp.training.models.bottleneck import Bottleneck, BottleneckShape
from offramp.training.models.layers import ConvUnit
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize


def coded_model() -> tuple[SplitModel, torch.Tensor, np.ndarray]:
    """A split with a code, its batch norms settled, and the images for that, also as pixels."""
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), 5)
    model.insert(Bottleneck(model.exit_shape, BottleneckShape(8, 2, 16, 1)), exit_behind=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 3, 8, 8), np.uint8)
    pixels = pixels.repeat(4, axis=2).repeat(4, axis=3)
    images = to_float(torch.from_numpy(pixels))
    with torch.no_grad():
        for _ in range(10):
            model(images)
        # Untrained, a code hardly leaves 0, and biases do not.
        assert model.bottleneck is not None
        encoder, decoder = model.bottleneck.blocks()
        last, first = encoder[-1].unit, decoder[0].unit
        assert isinstance(last, ConvUnit) and isinstance(first, ConvUnit)
        last.norm.weight.mul_(6)
        first.norm.bias.uniform_(-1, 1)
        for _ in range(10):
            model(images)
    return model.eval(), images, pixels


def run_head(graphs: Graphs, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    symbols, logits = session(graphs.head, threads=1).run(["symbols", "logits"], {"image": pixels})
    return symbols, logits


def run_tail(graphs: Graphs, symbols: np.ndarray) -> np.ndarray:
    (logits,) = session(graphs.tail, threads=1).run(["logits"], {"symbols": symbols})
    return np.asarray(logits)


@pytest.mark.parametrize("step", [0.25, 0.8, 2.0])
def test_both_graphs_have_the_step(step: float) -> None:
    model, images, pixels = coded_model()
    whole = export(quantize(model, images))
    stepped = with_step(whole, step)
    (before, early), (after, same_early) = run_head(whole, pixels), run_head(stepped, pixels)
    assert np.array_equal(early, same_early)
    assert len(np.unique(before)) > 3
    # Half a step each of rounding, and the values between are the same.
    apart = np.abs((after.astype(float) - 128) * step - (before.astype(float) - 128))
    assert apart.max() <= (1 + step) / 2 + 1e-5
    with torch.no_grad():
        code = model(images).activation.numpy()
    assert np.abs((after - 128.0) * step - code).mean() < step * 0.25 + 0.1


def test_the_tail_reads_the_values_that_were_meant() -> None:
    model, images, pixels = coded_model()
    whole = export(quantize(model, images))
    symbols, _ = run_head(whole, pixels)
    # Every whole number is two halves.
    halves = (2 * (symbols.astype(int) - 128) + 128).astype(np.uint8)
    wanted, found = run_tail(whole, symbols), run_tail(with_step(whole, 0.5), halves)
    np.testing.assert_allclose(found, wanted, atol=0.02 * wanted.std())
    assert np.abs(run_tail(whole, halves) - wanted).max() > 0.2 * wanted.std()


def test_steps_do_not_add_up() -> None:
    model, images, pixels = coded_model()
    whole = export(quantize(model, images))
    there = with_step(whole, 0.5)
    assert with_step(there, 0.5) == there
    back = with_step(there, 1.0)
    assert np.array_equal(run_head(back, pixels)[0], run_head(whole, pixels)[0])
    names = [one.name for one in onnx.load_from_string(with_step(there, 4.0).tail).graph.initializer]
    assert names.count("scale_4.0") == 1
    assert "scale_0.5" not in names


def test_the_bias_keeps_the_unit_that_a_runtime_takes_it_in() -> None:
    model, images, _ = coded_model()
    tail = onnx.load_from_string(with_step(export(quantize(model, images)), 0.5).tail)
    values = {one.name: numpy_helper.to_array(one) for one in tail.graph.initializer}
    first = next(node for node in tail.graph.node if node.op_type == "Conv")
    (x,), (weight,), (bias,) = (
        [node for node in tail.graph.node if name in node.output] for name in first.input
    )
    unit = values[x.input[1]] * values[weight.input[1]]
    np.testing.assert_allclose(values[bias.input[1]], unit, rtol=1e-6)


# At the end of a block and inside a residual one.
@pytest.mark.parametrize("exit_number", [1, 3])
def test_an_activation_has_no_step_of_its_own(exit_number: int) -> None:
    model = SplitModel(BACKBONES["tiny"](10, 32), exit_number)
    graphs = export(quantize(model, torch.randn(8, 3, 32, 32)))
    with pytest.raises(DataError, match="expected a rate-trained split"):
        with_step(graphs, 2.0)
