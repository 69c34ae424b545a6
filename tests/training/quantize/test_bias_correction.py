from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.common.part.session import session
from offramp.training.data.datasets import to_float
from offramp.training.export import export
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize import bias_correction
from offramp.training.quantize.bias_correction import with_corrected_biases
from offramp.training.quantize.quantize import quantize
from offramp.training.quantize.quantized import QuantLayer, QuantModel


def means(quantized: QuantModel, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean logits of the early and the final exit of the exported graphs."""
    graphs = export(quantized)
    symbols, early = session(graphs.head, threads=1).run(["symbols", "logits"], {"image": pixels})
    (final,) = session(graphs.tail, threads=1).run(["logits"], {"symbols": symbols})
    return early.mean(axis=0), final.mean(axis=0)


def made(exit_number: int) -> tuple[SplitModel, np.ndarray]:
    """A model with batch norms that have seen images, in eval mode, and these, uint8 [64, 3, 32, 32]."""
    torch.manual_seed(0)
    model = SplitModel(BACKBONES["tiny"](10, 32), exit_number)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), np.uint8)
    with torch.no_grad():
        for _ in range(20):
            model(to_float(torch.from_numpy(pixels)))
    return model.eval(), pixels


def off_by_rounding(quantized: QuantModel) -> QuantModel:
    """Biases that are off, as rounding might leave them, in every block with any."""
    return replace(
        quantized,
        blocks=tuple(
            replace(block, layer=replace(block.layer, bias=block.layer.bias + 3000))
            if isinstance(block.layer, QuantLayer)
            else block
            for block in quantized.blocks
        ),
    )


# At the end of a block, and inside a residual one.
@pytest.mark.parametrize("exit_number", [7, 3])
def test_mean_answers_of_the_graphs_are_those_of_the_float_model(exit_number: int) -> None:
    model, pixels = made(exit_number)
    images = to_float(torch.from_numpy(pixels))
    with torch.no_grad():
        out = model(images)
    off = off_by_rounding(quantize(model, images))
    for exact, moved, corrected in zip(
        (out.early.mean(dim=0).numpy(), out.final.mean(dim=0).numpy()),
        means(off, pixels),
        means(with_corrected_biases(model, off, images), pixels),
        strict=True,
    ):
        assert np.abs(moved - exact).max() > 0.01
        np.testing.assert_allclose(corrected, exact, atol=0.002)


def test_large_activations_are_of_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = made(7)
    images = to_float(torch.from_numpy(pixels))
    off = off_by_rounding(quantize(model, images))
    of_all, of_half = (with_corrected_biases(model, off, images[:count]) for count in (64, 32))
    monkeypatch.setattr(bias_correction, "_BYTES", 1)
    assert export(with_corrected_biases(model, off, images)) == export(of_half) != export(of_all)
