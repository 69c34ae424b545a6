"""The exported graphs: their contract, agreement with the float model, and that they run in integers."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from offramp.common.bundle.graphs import check_graph
from offramp.training.data.datasets import to_float
from offramp.training.export import Graphs, export
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.quantize import quantize
from offramp.training.quantize.quantized import QuantModel


def session(
    graph: bytes,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    optimized: Path | None = None,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    # It warns that an optimized graph is for this machine only.
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Exported:
    """A model with seen batch norms, its graphs, and both on the same images."""

    def __init__(self, backbone: str, exit_number: int) -> None:
        torch.manual_seed(exit_number)
        build = BACKBONES[backbone]
        self.model = SplitModel(build(10, 32), exit_number)
        self.pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
        # Smooth, as pictures are: noise alone averages out to nothing within a few layers.
        self.pixels = self.pixels.repeat(4, axis=2).repeat(4, axis=3)[:, :, :32, :32]
        self.images = to_float(torch.from_numpy(self.pixels))
        with torch.no_grad():
            for _ in range(10):
                self.model.train()(self.images)
            self.out = self.model.eval()(self.images)
        self.quantized: QuantModel = quantize(self.model, self.images)
        self.graphs: Graphs = export(self.quantized)

    def head(self, level: ort.GraphOptimizationLevel) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        symbols, logits = session(self.graphs.head, level).run(["symbols", "logits"], {"image": self.pixels})
        return symbols, logits

    def tail(self, symbols: NDArray[np.uint8], level: ort.GraphOptimizationLevel) -> NDArray[np.float32]:
        (logits,) = session(self.graphs.tail, level).run(["logits"], {"symbols": symbols})
        return np.asarray(logits)


ALL, NONE = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
CASES = [
    *(("tiny", number) for number in range(1, 8)),
    *(("mobilenet-v2", number) for number in (5, 12)),
    # After a block, and inside one, where a ReLU and a skip of both signs share a code.
    *(("resnet-32", number) for number in (5, 6)),
    ("vgg-19", 5),
]


@cache
def made(backbone: str, exit_number: int) -> Exported:
    return Exported(backbone, exit_number)


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    yield
    made.cache_clear()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def exported(request: pytest.FixtureRequest, tiny_backbone: None) -> Exported:
    return made(*request.param)


def error(found: NDArray[np.float32], wanted: torch.Tensor) -> float:
    """Mean absolute error relative to the spread of what was wanted."""
    reference = wanted.numpy()
    return float(np.abs(found - reference).mean() / reference.std())


def test_the_graphs_agree_with_the_float_model(exported: Exported) -> None:
    symbols, early = exported.head(ALL)
    activation = exported.quantized.symbols.dequantize(symbols)
    # An 8-bit code alone costs about 0.5 % of the spread; each layer before it adds its own.
    assert error(activation, exported.out.activation) < 0.03
    assert error(early, exported.out.early) < 0.03
    assert error(exported.tail(symbols, ALL), exported.out.final) < 0.06


def test_fused_integers_agree_with_the_graph_as_written(exported: Exported) -> None:
    fused, early = exported.head(ALL)
    written, early_written = exported.head(NONE)
    apart = np.abs(fused.astype(int) - written)
    # Rounding ties may fall to either side in one layer and travel through the next ones.
    assert apart.max() <= 3
    assert (apart > 0).mean() < 0.02
    np.testing.assert_allclose(early, early_written, atol=0.02 * early.std())
    final = exported.tail(written, NONE)
    np.testing.assert_allclose(exported.tail(written, ALL), final, atol=0.05 * final.std())


def test_contract(exported: Exported) -> None:
    image, symbols = ["N", 3, 32, 32], ["N", *exported.quantized.split_shape]
    head, tail = session(exported.graphs.head), session(exported.graphs.tail)

    def ports(found: list[ort.NodeArg]) -> list[tuple[str, str, list[str | int]]]:
        return [(port.name, port.type, port.shape) for port in found]

    assert ports(head.get_inputs()) == [("image", "tensor(uint8)", image)]
    assert ports(head.get_outputs()) == [
        ("symbols", "tensor(uint8)", symbols),
        ("logits", "tensor(float)", ["N", 10]),
    ]
    assert ports(tail.get_inputs()) == [("symbols", "tensor(uint8)", symbols)]
    assert ports(tail.get_outputs()) == [("logits", "tensor(float)", ["N", 10])]
    for name, graph in (("head.onnx", exported.graphs.head), ("tail.onnx", exported.graphs.tail)):
        check_graph(name, graph)
        model = onnx.load_model_from_string(graph)
        assert [(opset.domain, opset.version <= 21) for opset in model.opset_import] == [("", True)]
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_batches_give_what_single_images_give(exported: Exported) -> None:
    head = session(exported.graphs.head)
    together, logits = head.run(["symbols", "logits"], {"image": exported.pixels[:3]})
    for number in range(3):
        alone, own = head.run(["symbols", "logits"], {"image": exported.pixels[number : number + 1]})
        assert np.array_equal(alone[0], together[number])
        np.testing.assert_array_equal(own[0], logits[number])


@pytest.mark.parametrize(
    ("backbone", "exit_number"), [("mobilenet-v2", 5), ("mobilenet-v2", 12), ("resnet-32", 6), ("vgg-19", 5)]
)
def test_every_layer_runs_in_integers(backbone: str, exit_number: int, tmp_path: Path) -> None:
    """Speed, without a clock: after fusion nothing is computed in float, and no pair of Q and DQ is left."""
    graphs = made(backbone, exit_number).graphs
    for name, graph in (("head", graphs.head), ("tail", graphs.tail)):
        path = tmp_path / f"{name}.onnx"
        session(graph, optimized=path)
        operators = [node.op_type for node in onnx.load(path).graph.node]
        layers = sum(node.op_type == "Conv" for node in onnx.load_model_from_string(graph).graph.node)
        assert operators.count("QLinearConv") == layers
        assert operators.count("QGemm") == 1
        moving = {"Transpose", "Flatten", "Slice", "Concat", "MaxPool", "NhwcMaxPool"}
        integer = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"}
        assert set(operators) <= moving | integer
