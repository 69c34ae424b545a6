"""A module as one graph: the same answers for any batch, the module untouched, or one clear error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.split.capture import capture
from tests.training.split.networks import CLASSES, NETWORKS, SHAPE, MobileNet, ResNet, WithAttribute, build


def answer(module: nn.Module, x: Tensor) -> Tensor:
    found = module(x)
    logits: Tensor = found["logits"] if isinstance(found, dict) else found
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_answers_as_the_module_for_any_number_of_inputs(name: str) -> None:
    module, shape = build(name), NETWORKS[name][1]
    captured = capture(module, shape)
    assert captured.exact and captured.classes == CLASSES and captured.shape == shape
    for batch in (1, 2, 7):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            assert torch.equal(captured.graph(x), answer(module, x))


def test_channels_that_are_last_in_memory_are_taken() -> None:
    captured = capture(build("resnet"), SHAPE)
    x = torch.randn(3, *SHAPE)
    last = captured.graph(x.to(memory_format=torch.channels_last))
    assert torch.allclose(last, captured.graph(x), atol=1e-5)


def test_nothing_is_changed_in_place() -> None:
    captured = capture(build("resnet"), SHAPE)
    assert not [
        node.name for node in captured.graph.graph.nodes if str(node.target).split(".")[1:2] == ["relu_"]
    ]
    x = torch.randn(2, *SHAPE)
    before = x.clone()
    captured.graph(x)
    assert torch.equal(x, before)


def test_parameters_and_buffers_are_the_modules_own() -> None:
    module = build("resnet")
    captured = capture(module, SHAPE)
    theirs = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    ours = [*captured.graph.parameters(), *captured.graph.buffers()]
    assert ours and {id(tensor) for tensor in ours} <= theirs


def test_each_part_of_the_module_stays_in_its_mode() -> None:
    module = MobileNet().train()
    module[1].eval()
    capture(module, SHAPE)
    assert module.training and module[0].training and not module[1].training


def test_logits_are_found_in_an_object() -> None:
    assert capture(WithAttribute(), (3, 2, 2)).classes == CLASSES


def test_sizes_that_depend_on_the_batch_are_left_open() -> None:
    graph = capture(build("vit"), SHAPE).graph.graph
    sizes = [node for node in graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    # The class token alone is copied for each input.
    assert {user.target for node in sizes for user in node.users} == {torch.ops.aten.expand.default}


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)[:, :4] + torch.zeros(2, 4)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.rand(x.shape[0], 12)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(5, 2), r"net: does not run on float32 \[2, 3, 2, 2\]: "),
        (nn.Identity(), r"net: returns float32 \[2, 3, 2, 2\] for two inputs; expected logits \[2, K\]"),
        (Two(), r"net: returns tuple; expected logits \[N, K\] or \.logits"),
        (Fixed(), "net: torch.export cannot capture it: its code fixes the batch size"),
        (Branches(), "net: torch.export cannot capture it: its path depends on the values of its input"),
        (Noise(), "net: its captured graph answers differently, .* random numbers"),
    ],
    ids=["input", "rank", "two", "batch", "branches", "noise"],
)
def test_what_cannot_be_captured_says_why_in_one_line(module: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        capture(module, (3, 2, 2), name="net")
    assert "\n" not in str(caught.value)


def test_a_module_that_raised_is_in_training_again() -> None:
    module = ResNet().train()
    with pytest.raises(ConfigError):
        capture(module, (5, 8, 8))
    assert module.training
