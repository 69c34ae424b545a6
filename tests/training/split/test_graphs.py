"""Head and tail of a split as ONNX: they compute what the modules do, in operators that a bundle may have."""

import numpy as np
import onnx
import torch
from torch import Tensor

from offramp.common.bundle.graphs import check_graph
from offramp.common.part.session import session
from offramp.training.split.capture import capture
from offramp.training.split.code import Code, choose_shape
from offramp.training.split.graphs import (
    CODE,
    IMAGE,
    LOGITS,
    NEXT_CODE,
    NORMALISE,
    float_graphs,
    from_symbols,
    in_symbols,
    whole_graph,
    with_symbols,
)
from offramp.training.split.halves import divide, split
from offramp.training.split.layout import Layout
from offramp.training.split.photos import Normalise
from offramp.training.split.quantize import quantize
from tests.training.split import networks


def run_tensor(model: onnx.ModelProto, outputs: list[str], feeds: dict[str, Tensor]) -> list[Tensor]:
    """A float graph's outputs."""
    given = {name: value.numpy() for name, value in feeds.items()}
    found = session(model.SerializeToString(), threads=1).run(outputs, given)
    return [torch.from_numpy(np.asarray(each)) for each in found]


def test_the_graphs_compute_what_the_modules_do() -> None:
    captured, cuts = networks.found("resnet")
    at = cuts.find("layer1")
    layout = Layout.of(at.shape)
    torch.manual_seed(0)
    channels = layout.map_shape[0]
    size = choose_shape(layout, target=20, most_macs=1e5)
    code = Code(layout, size, captured.classes, torch.zeros(channels), torch.ones(channels)).eval()
    torch.nn.init.normal_(code.correction.weight)
    halves, normalise = split(captured, at), Normalise((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    sides = captured.shape
    head, tail = float_graphs((halves.head, halves.tail), (code,), normalise, sides)
    images = torch.randint(0, 256, (3, *sides), dtype=torch.uint8)
    with torch.no_grad():
        crossing = halves.head(normalise(images))
        features = code.features(crossing)
        symbols = code.encode(crossing, features)
        wanted = [symbols, code.exit(features), halves.tail(code.decoder(symbols.round()))]
    found = run_tensor(head, [CODE, LOGITS], {IMAGE: images})
    found += run_tensor(tail, [LOGITS], {CODE: symbols.round()})
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    rounding, taking = with_symbols(head), from_symbols(tail)
    check_graph("head.onnx", rounding.SerializeToString())
    check_graph("tail.onnx", taking.SerializeToString())
    (levels,) = run_tensor(rounding, ["symbols"], {IMAGE: images})
    assert np.array_equal(levels.numpy().astype(int) - 128, symbols.round().clamp(-128, 127).numpy())
    (answers,) = run_tensor(taking, [LOGITS], {"symbols": levels})
    assert torch.allclose(answers, wanted[2], atol=1e-4)


def test_three_parts_of_tokens_compute_what_the_modules_do() -> None:
    captured, cuts = networks.found("vit")
    several = [cuts.find(name) for name in ("blocks.0", "blocks.1")]
    torch.manual_seed(0)
    codes = []
    for at in several:
        layout = Layout.of(at.shape)
        ones = torch.ones(layout.map_shape[0])
        size = choose_shape(layout, target=20, most_macs=1e5)
        codes.append(Code(layout, size, captured.classes, 0 * ones, ones).eval())
        torch.nn.init.normal_(codes[-1].correction.weight)
    modules = divide(captured, several)
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    parts = float_graphs(modules, codes, normalise, captured.shape)
    images = torch.randint(0, 256, (3, *captured.shape), dtype=torch.uint8)
    with torch.no_grad():
        crossing = modules[0](normalise(images))
        features = codes[0].features(crossing)
        first = codes[0].encode(crossing, features), codes[0].exit(features)
    symbols = torch.randint(-20, 20, (3, *codes[0].symbols_shape)).float()
    with torch.no_grad():
        crossing = modules[1](codes[0].decoder(symbols))
        features = codes[1].features(crossing)
        wanted = codes[1].encode(crossing, features), codes[1].exit(features)
        answers = modules[2](codes[1].decoder(wanted[0].round()))
    found = run_tensor(parts[0], [CODE, LOGITS], {IMAGE: images})
    found += run_tensor(parts[1], [NEXT_CODE, LOGITS], {CODE: symbols})
    found += run_tensor(parts[2], [LOGITS], {CODE: wanted[0].round()})
    for ours, theirs in zip(found, (*first, *wanted, answers), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    head, between, last = in_symbols(parts)
    for name, graph in (("head.onnx", head), ("part2.onnx", between), ("tail.onnx", last)):
        check_graph(name, graph)
    levels, _ = run_tensor(
        onnx.load_from_string(between), ["next_symbols", LOGITS], {"symbols": (symbols + 128).byte()}
    )
    assert np.array_equal(levels.numpy().astype(int) - 128, wanted[0].round().clamp(-128, 127).numpy())


def test_one_mean_for_all_channels_makes_integers_of_the_bytes_as_they_are() -> None:
    captured, _ = networks.found("resnet")
    normalise = Normalise((127 / 255,) * 3, (128 / 255,) * 3)
    model = whole_graph(captured.graph, normalise, captured.shape)
    assert model.graph.node[0].op_type == "DequantizeLinear" and model.graph.node[1].op_type == "Conv"
    images = torch.randint(0, 256, (3, *captured.shape), dtype=torch.uint8)
    (logits,) = run_tensor(model, [LOGITS], {IMAGE: images})
    with torch.no_grad():
        assert torch.allclose(logits, captured.graph(normalise(images)), atol=1e-4)
    quantized = quantize(model, IMAGE, images.numpy(), images.numpy(), keep=NORMALISE.__contains__).model
    (first,) = [node for node in quantized.graph.node if IMAGE in node.input]
    (user,) = [node for node in quantized.graph.node if first.output[0] in node.input]
    assert (first.op_type, user.op_type) == ("DequantizeLinear", "Conv")


def test_a_mean_for_each_channel_is_computed() -> None:
    captured, _ = networks.found("resnet")
    for normalise in (Normalise((0.5, 0.4, 0.4), (0.2,) * 3), Normalise((0.5,) * 3, (0.5,) * 3)):
        model = whole_graph(captured.graph, normalise, captured.shape)
        assert [node.op_type for node in model.graph.node[:3]] == ["Cast", "Mul", "Add"]
        images = torch.randint(0, 256, (2, *captured.shape), dtype=torch.uint8)
        (logits,) = run_tensor(model, [LOGITS], {IMAGE: images})
        with torch.no_grad():
            assert torch.allclose(logits, captured.graph(normalise(images)), atol=1e-4)


class _Reductions(torch.nn.Module):
    """What ConvNeXt V2 (an L2 norm over places), cosine heads and attention do with their maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        scaled = x * (norm / (norm.mean(1, keepdim=True) + 1e-6))
        logits: torch.Tensor = scaled.sum((2, 3)) + x.amax((2, 3))
        return logits


def test_a_network_of_reductions_is_one_that_a_bundle_may_have() -> None:
    captured = capture(_Reductions().eval(), (3, 8, 8), name="reductions")
    normalise = Normalise((0.5,) * 3, (0.25,) * 3)
    model = whole_graph(captured.graph, normalise, captured.shape)
    check_graph("head.onnx", model.SerializeToString())
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    (found,) = run_tensor(model, [LOGITS], {IMAGE: images})
    with torch.no_grad():
        assert torch.allclose(found, captured.graph(normalise(images)), atol=1e-4)
