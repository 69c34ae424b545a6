"""ONNX Runtime's quantizer as it is used here: what may stay in float, and outputs that are not rounded."""

from pathlib import Path

from offramp.training.split.quantizer import Quantizer, named
from tests.training.split.test_quantize import convolutions, inputs, int8_weights


def quantizer(folder: Path, *keep: str) -> Quantizer:
    model = named(convolutions(hostile=False))
    return Quantizer(model, "x", inputs(8), folder, keep=lambda name: name in keep)


def test_chosen_operators_stay_in_float(tmp_path: Path) -> None:
    made = quantizer(tmp_path).quantized(["conv_b"])
    assert int8_weights(made) == {(8, 3, 3, 3), (8, 8, 1, 1), (4, 8, 3, 3)}
    # Ranges are measured once: another choice begins from them.
    assert (tmp_path / "ranges.json").exists()


def test_what_is_kept_is_no_choice(tmp_path: Path) -> None:
    found = quantizer(tmp_path, "conv_a")
    nodes = {node.name: node for node in convolutions(hostile=False).graph.node}
    assert [name for name, node in nodes.items() if found.may_be_integer(node)] == [
        "conv_b", "conv_c", "mul_half", "conv_d",
    ]  # fmt: skip
    assert (8, 3, 3, 3) not in int8_weights(found.quantized([]))


def test_an_output_is_not_rounded(tmp_path: Path) -> None:
    made = quantizer(tmp_path).quantized([])
    last = next(node for node in made.graph.node if "y" in node.output)
    assert last.op_type == "Conv"
