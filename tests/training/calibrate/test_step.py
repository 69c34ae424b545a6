import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from offramp.common.bundle.load import load_bundle
from offramp.common.errors import DataError
from offramp.common.part.engine import Engine
from offramp.common.part.session import session
from offramp.training.calibrate.step import main, with_step
from offramp.training.data.datasets import Dataset, to_float
from offramp.training.export import Graphs, export
from offramp.training.models.bottleneck import Bottleneck, BottleneckShape
from offramp.training.models.layers import ConvUnit
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize
from tests.training.bundles import trained_bundle
from tests.training.coded import code_text


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe_words: str, tiny_backbone: None) -> Path:
    return trained_bundle(code_text(recipe_words), tmp_path_factory.mktemp("step"))


def test_a_bundle_of_another_step_is_written_beside_its_own(
    trained: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bundle(trained)
    capsys.readouterr()
    command = [str(trained), "--step", "0.5", "--out", str(tmp_path / "fine"), "--json"]
    assert main([*command, "--export-test", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == len(digits.test)
    (found,) = json.loads(capsys.readouterr().out)
    assert load_bundle(trained).digest == before.digest
    after = load_bundle(tmp_path / "fine")
    manifest = after.manifest
    assert manifest.name == f"{before.manifest.name}-step0.5"
    assert (manifest.activation.scale, before.manifest.activation.scale) == (0.5, 1.0)
    assert manifest.threshold == found["threshold"]
    assert manifest.sent_answer == found["sent_answer"]
    figures = manifest.figures
    assert figures.accuracy_early == before.manifest.figures.accuracy_early
    assert figures.accuracy_final_float == before.manifest.figures.accuracy_final_float
    assert figures.payload_bytes_mean > before.manifest.figures.payload_bytes_mean
    # The card is of what the programs do, on test images.
    engine = Engine(after)
    symbols, _ = engine.head(digits.test.images)
    payloads = [len(after.codec.encode(one)[1]) for one in symbols]
    assert figures.payload_bytes_mean == np.mean(payloads)
    right = engine.tail(symbols).argmax(1) == digits.test.labels
    assert figures.accuracy_final == right.mean()
    # And what is printed, on validation images.
    symbols, _ = engine.head(digits.validation.images)
    right = engine.tail(symbols).argmax(1) == digits.validation.labels
    assert found["accuracy_final"] == right.mean()
    assert found["payload_bytes"] == np.mean([len(after.codec.encode(one)[1]) for one in symbols])


def test_a_step_replaces_the_one_before(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained), "--step", "0.8", "--out", str(tmp_path / "fine")]) == 0
    assert main([str(tmp_path / "fine"), "--step", "2", "--out", str(tmp_path / "coarse")]) == 0
    manifest = load_bundle(tmp_path / "coarse").manifest
    assert manifest.name == f"{load_bundle(trained).manifest.name}-step2"
    assert manifest.activation.scale == 2


def test_steps_are_compared_and_nothing_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "bundle")
    files = {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert main([str(tmp_path / "bundle"), "--step", "0.5", "1", "2"]) == 0
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split() == [
        *["step", "B", "sent", "final", "exit", "best", "of", "all", "T_c"],
        *["T_c", "accuracy", "B", "an", "image", "answered", "by"],
    ]
    assert [line.split()[0] for line in lines] == ["0.5", "1", "2"]
    sent = [float(line.split()[1]) for line in lines]
    assert sent == sorted(sent, reverse=True)
    assert {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none", "--step", "1"], 4, "none"),
        (["none"], 2, "the following arguments are required: --step"),
        (["none", "--step", "0"], 2, "--step: '0', expected a number, 0.05 … 20"),
        (["none", "--step", "nan"], 2, "'nan', expected a number"),
        (["none", "--step", "fine"], 2, "'fine', expected a number"),
        (["none", "--step", "1", "2", "--out", "x"], 2, "--out: expected one --step with it, not 2"),
        (["none", "--step", "1", "--out", "/"], 2, "--out /: expected a folder that is empty"),
        (["models/digits-mobilenetv2-exit12", "--step", "1"], 5, "expected a rate-trained split"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
