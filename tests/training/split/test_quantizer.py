"""ONNX Runtime's quantizer for one graph: what it leaves as it is."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from offramp.training.split.quantizer import Quantizer, named
from tests.training.split.test_quantize import convolutions, inputs, int8_weights


def test_outputs_are_not_rounded(tmp_path: Path) -> None:
    model = Quantizer(named(convolutions(hostile=False)), "x", inputs(), tmp_path).quantized(())
    (last,) = [node for node in model.graph.node if "y" in node.output]
    assert last.op_type == "Conv"
    onnx.checker.check_model(model, full_check=True)


def test_an_exact_input_is_not_rounded(tmp_path: Path) -> None:
    whole = np.rint(inputs() * 30).clip(-128, 127).astype(np.float32)
    quantizer = Quantizer(named(convolutions(hostile=False)), "x", whole, tmp_path, exact=("x",))
    model = quantizer.quantized(())
    steps = {each.name: each for each in model.graph.initializer}
    (first,) = [node for node in model.graph.node if node.input[0] == "x"]
    assert first.op_type == "QuantizeLinear"
    assert [numpy_helper.to_array(steps[name]).item() for name in first.input[1:]] == [1, 128]


def test_operators_can_stay_in_float_and_ranges_are_measured_once(tmp_path: Path) -> None:
    quantizer = Quantizer(named(convolutions(hostile=False)), "x", inputs(), tmp_path)
    assert (8, 8, 3, 3) in int8_weights(quantizer.quantized(()))
    before = (tmp_path / "ranges.json").stat().st_mtime_ns
    weights = int8_weights(quantizer.quantized(("conv_b",)))
    assert (8, 8, 3, 3) not in weights and (8, 3, 3, 3) in weights
    assert (tmp_path / "ranges.json").stat().st_mtime_ns == before
