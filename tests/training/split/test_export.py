"""Halves as ONNX graphs: ONNX Runtime agrees with PyTorch, and no shape is computed that could be known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from offramp.common.bundle.graphs import check_graph
from offramp.training.split.capture import capture
from offramp.training.split.export import to_onnx
from offramp.training.split.halves import split
from tests.training.split.networks import found

pytest.importorskip("onnxscript", reason="torch's ONNX exporter needs onnxscript, of the extra [split]")

SHAPES = {"Shape", "Size", "Gather", "Expand", "ConstantOfShape", "Range", "If", "Loop"}


def run(model: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(np.asarray(y))


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)


@pytest.mark.parametrize(
    ("name", "batch"),
    [*((name, None) for name in ("resnet", "mobilenet", "vit", "sound", "paper-resnet32")), ("vit", 1)],
)
def test_onnx_runtime_agrees_with_both_halves(name: str, batch: int | None) -> None:
    captured, cuts = found(name)
    places = cuts.places()
    cut = places[len(places) // 2]
    halves = split(captured, cut)
    head = to_onnx(halves.head, captured.shape, batch=batch, names=("image", "activation"))
    tail = to_onnx(halves.tail, cut.shape, batch=batch)
    x = torch.randn(batch or 5, *captured.shape)
    with torch.no_grad():
        activation = halves.head(x)
        assert torch.allclose(run(head, x), activation, atol=1e-4)
        assert torch.allclose(run(tail, activation), halves.tail(activation), atol=1e-4)
    check_graph("head.onnx", head)
    check_graph("tail.onnx", tail)
    # With a free batch, only the class token is copied by a shape.
    computed = (operators(head) + operators(tail)).keys() & SHAPES
    assert computed == ({"Shape", "Expand"} if name == "vit" and batch is None else set())


def test_a_graph_says_nothing_of_the_machine_that_made_it() -> None:
    captured, _ = found("mobilenet")
    model = to_onnx(captured.graph, captured.shape, names=("image", "logits"))
    assert b".py" not in model and b"stack_trace" not in model
    graph = onnx.load_model_from_string(model).graph
    assert [graph.input[0].name, graph.output[0].name] == ["image", "logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert model == to_onnx(captured.graph, captured.shape, names=("image", "logits"))


class Masked(nn.Module):
    mask: Tensor | None

    def __init__(self, mask: Tensor | None, *, causal: bool = False) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.causal = causal
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        y = nn.functional.scaled_dot_product_attention(
            x, x, x, attn_mask=self.mask, is_causal=self.causal, scale=0.3
        )
        logits: Tensor = self.fc(y.mean((1, 2)))
        return logits


@pytest.mark.parametrize(
    "module",
    [Masked(torch.randn(6, 6)), Masked(torch.eye(6, dtype=torch.bool)), Masked(None, causal=True)],
    ids=["added", "boolean", "causal"],
)
def test_attention_with_a_mask_or_a_scale_of_its_own(module: nn.Module) -> None:
    graph: fx.GraphModule = capture(module, (6, 4)).graph
    x = torch.randn(3, 6, 4)
    with torch.no_grad():
        assert torch.allclose(run(to_onnx(graph, (6, 4)), x), graph(x), atol=1e-4)


def test_a_global_pool_of_channels_that_are_last_in_memory_computes_no_shape() -> None:
    class Permuted(nn.Module):
        """The end of a ConvNeXt."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return torch.flatten(self.pool(y), 1)

    graph = capture(Permuted(), (4, 6, 6)).graph
    model = to_onnx(graph, (4, 6, 6))
    assert not operators(model).keys() & SHAPES
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        assert torch.allclose(run(model, x), graph(x), atol=1e-4)


class SamePadding(nn.Module):
    """A convolution with more zeros on one side, as TensorFlow's models have it, and one padding of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(4, 5, 3, 2)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(nn.functional.pad(x, (0, 1, 0, 1))))
        x = self.second(nn.functional.pad(x, (1, 0, 2, 0)))
        return self.last(torch.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_zeros_around_a_convolutions_input_are_its_own_padding() -> None:
    torch.manual_seed(1)
    module = SamePadding().eval()
    captured = capture(module, (3, 15, 15), name="padded")
    model = to_onnx(captured.graph, captured.shape)
    assert "Pad" not in operators(model)
    convolutions = [node for node in onnx.load_model_from_string(model).graph.node if node.op_type == "Conv"]
    pads = [next(list(each.ints) for each in node.attribute if each.name == "pads") for node in convolutions]
    assert pads == [[1, 1, 2, 2], [2, 1, 0, 0]]
    x = torch.randn(3, 3, 15, 15)
    with torch.no_grad():
        assert torch.allclose(run(model, x), module(x), atol=1e-5)


def test_a_padding_that_is_read_elsewhere_or_is_not_of_zeros_stays() -> None:
    class Ones(SamePadding):
        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(self.first(x), (1, 0, 2, 0))
            ones = nn.functional.pad(padded, (1, 1, 1, 1), value=1.0)
            return self.last(self.second(ones).mean((2, 3)) + padded.mean() * 0)  # type: ignore[no-any-return]

    captured = capture(Ones().eval(), (3, 15, 15), name="padded")
    assert operators(to_onnx(captured.graph, captured.shape))["Pad"] == 2
