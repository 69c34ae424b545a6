"""Two halves that are together the whole, bit for bit, in PyTorch; and in ONNX Runtime within rounding."""

from __future__ import annotations

import pytest
import torch

from offramp.common.errors import ConfigError
from offramp.training.split.capture import capture
from offramp.training.split.cuts import find_cuts
from offramp.training.split.halves import divide, split
from tests.training.split.networks import NETWORKS, build, found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_halves_are_the_whole_bit_for_bit(name: str) -> None:
    captured, cuts = found(name)
    inputs = [torch.randn(batch, *captured.shape) for batch in (1, 3)]
    with torch.no_grad():
        wholes = [captured.graph(x) for x in inputs]
        # The paper's are large, and alike at every cut.
        for cut in cuts.places()[::3] if name.startswith("paper") else cuts.cuts:
            halves = split(captured, cut)
            for x, whole in zip(inputs, wholes, strict=True):
                activation = halves.head(x)
                assert activation.shape == (len(x), *cut.shape)
                kept = activation.clone()
                assert torch.equal(halves.tail(activation), whole), cut.name
                assert torch.equal(activation, kept), cut.name


@pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
def test_the_parts_of_several_cuts_are_the_whole_bit_for_bit(name: str) -> None:
    captured, cuts = found(name)
    places = cuts.places()
    several = [places[0], places[len(places) // 2], places[-1]]
    parts = divide(captured, several)
    for batch in (1, 3):
        x = torch.randn(batch, *captured.shape)
        with torch.no_grad():
            whole = captured.graph(x)
            for part, cut in zip(parts, several, strict=False):
                x = part(x)
                assert x.shape == (batch, *cut.shape)
            assert torch.equal(parts[-1](x), whole)
    with pytest.raises(ConfigError, match="the second is not behind the first"):
        divide(captured, several[1::-1])


def test_each_half_has_only_what_it_uses_and_shares_it_with_the_module() -> None:
    module = build("resnet")
    captured = capture(module, NETWORKS["resnet"][1])
    halves = split(captured, find_cuts(captured).find("layer1"))
    head, tail = ({name for name, _ in half.named_parameters()} for half in (halves.head, halves.tail))
    assert not head & tail
    own = dict(module.named_parameters())
    assert head | tail == own.keys()
    for half in (halves.head, halves.tail):
        assert all(parameter is own[name] for name, parameter in half.named_parameters())
        assert {name for name, _ in half.named_buffers()} < dict(module.named_buffers()).keys()


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_training_the_tail_trains_the_module(name: str) -> None:
    module = build(name)
    captured = capture(module, NETWORKS[name][1])
    cuts = find_cuts(captured)
    halves = split(captured, cuts.places()[len(cuts.places()) // 2])
    x = torch.randn(4, *captured.shape)
    before = module(x).detach()
    optimizer = torch.optim.SGD(halves.tail.parameters(), lr=0.1)
    activation = halves.head(x).detach()
    loss = torch.nn.functional.cross_entropy(halves.tail(activation), torch.tensor([0, 1, 2, 3]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in halves.tail.parameters())
    optimizer.step()
    with torch.no_grad():
        after = module(x)
        assert not torch.equal(after, before)
        assert torch.equal(halves.tail(halves.head(x)), after)


def test_a_cut_of_another_model_is_refused() -> None:
    resnet, vit = found("resnet"), found("vit")
    with pytest.raises(ConfigError, match=r"blocks\.1: not a cut of this model"):
        split(resnet[0], vit[1].find("blocks.1"))
