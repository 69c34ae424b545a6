"""Where a model can be cut, and what the halves cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.models.cost import partition
from offramp.training.models.mobilenet import mobilenet_v2
from offramp.training.models.split_model import SplitModel
from offramp.training.split.capture import capture
from offramp.training.split.cuts import Cost, Cuts, find_cuts
from tests.training.split.networks import CLASSES, NETWORKS, SHAPE, Windows, build, found


def cuts_of(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> Cuts:
    return find_cuts(capture(module, shape))


@pytest.fixture(scope="module")
def resnet() -> Cuts:
    return found("resnet")[1]


def test_a_residual_network_is_cut_between_its_blocks(resnet: Cuts) -> None:
    names = [cut.name for cut in resnet.cuts if cut.modules]
    assert names == [
        *("conv1", "bn1", "relu", "maxpool"),
        *("layer1.0", "layer1", "layer2.0", "layer2", "avgpool"),
    ]
    assert [cut.shape for cut in resnet.cuts if cut.name in ("maxpool", "layer2")] == [
        (8, 16, 16),
        (16, 8, 8),
    ]


def test_the_places_worth_a_choice_leave_out_what_only_changes_values(resnet: Cuts) -> None:
    names = [cut.name for cut in resnet.places()]
    assert names[:6] == ["relu", "maxpool", "layer1.0", "layer1", "layer2.0", "layer2"]


def test_a_module_is_found_by_any_name_that_ends_there(resnet: Cuts) -> None:
    whole = resnet.find("layer1")
    assert whole.modules[:2] == ("layer1", "layer1.1")
    assert resnet.find("layer1.1") is resnet.find("layer1.1.relu") is resnet.find(whole.node) is whole


def test_inside_a_block_the_nearest_cuts_are_named(resnet: Cuts) -> None:
    with pytest.raises(ConfigError) as caught:
        resnet.find("layer1.1.conv1")
    assert str(caught.value) == (
        "layer1.1.conv1: 2 tensors cross where it ends, so it is not a cut; "
        "the nearest cuts are layer1.0 before it and layer1.1:add after it"
    )


def test_a_name_that_is_not_in_the_model_is_answered_with_similar_ones(resnet: Cuts) -> None:
    with pytest.raises(ConfigError, match=r"^layer3\.0: no such cut; expected one of \d+, such as layer2\.0"):
        resnet.find("layer3.0")


def test_what_is_sent_and_what_each_half_costs(resnet: Cuts) -> None:
    cut = resnet.find("maxpool")
    assert cut.int8_bytes == 8 * 16 * 16
    # conv1 and its batch norm.
    assert cut.head == Cost(macs=3 * 9 * 8 * 32 * 32, weights=3 * 9 * 8 + 16)
    assert cut.operators == ("batch_norm", "conv2d", "max_pool2d", "relu")
    for each in resnet.cuts:
        assert each.head.macs + each.tail.macs == resnet.whole.macs
        assert each.head.weights + each.tail.weights == resnet.whole.weights
    assert resnet.whole.weights == sum(parameter.numel() for parameter in build("resnet").parameters())


def test_costs_are_those_that_the_paper_counts() -> None:
    _, cuts = found("paper-mobilenetv2")
    counted = partition(SplitModel(mobilenet_v2(CLASSES), 12))
    cut = next(cut for cut in cuts.cuts if "blocks.12" in cut.modules)
    # The early exit is not in the graph.
    assert cut.head.macs == counted.device.macs - counted.branch.macs
    assert cut.tail.macs == counted.server.macs
    # Exits by their number are cuts by name, as the error about `exits = […]` has it.
    first, second = cuts.find("blocks.5"), cuts.find("blocks.12")
    assert second.head.macs == cut.head.macs > first.head.macs > 0


def test_the_largest_activation_is_what_is_held_at_once(resnet: Cuts) -> None:
    picture, stem, pooled = 3 * 32 * 32, 8 * 32 * 32, 8 * 16 * 16
    assert resnet.find("conv1").peak_bytes == picture + stem
    # Batch norm and ReLU are done in place.
    assert resnet.find("relu").peak_bytes == picture + stem
    assert resnet.find("maxpool").peak_bytes == max(picture + stem, stem + pooled)


class Held(nn.Module):
    """Its first tensor is needed until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(1, 4, 1)
        self.b = nn.Conv1d(4, 16, 1)
        self.c = nn.Conv1d(16, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        y: Tensor = self.fc((skip + self.c(self.b(skip))).mean(2))
        return y


def test_a_tensor_that_is_added_later_is_held_meanwhile() -> None:
    cuts = cuts_of(Held(), (1, 10))
    assert cuts.find("a").peak_bytes == 10 + 40
    after = next(cut for cut in cuts.cuts if cut.node.startswith("add"))
    assert after.peak_bytes == 40 + 160 + 40


def test_attention_is_counted_and_its_weights_are_held() -> None:
    _, cuts = found("vit")
    before, after = cuts.find("add"), cuts.find("blocks.0")
    # Projections to and from, and for each pair of tokens a product and a weighted sum.
    assert after.head.macs - before.head.macs == 17 * 16 * (48 + 16) + 2 * 17 * 17 * 16
    # 4 heads of 17 × 17 weights; queries, keys, values; their sum; the residual branch.
    assert after.peak_bytes >= 4 * 17 * 17 + 17 * 16 * (3 + 1 + 1)
    assert "scaled_dot_product_attention" in after.operators


def test_matrix_products_without_a_layer_are_counted() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.einsum("nij,nkj->nik", x, x)
            y = torch.matmul(y, x)
            z: Tensor = self.fc(torch.bmm(y, x.transpose(1, 2) @ x).mean(1))
            return z

    assert cuts_of(Products(), (5, 6)).whole.macs == 2 * 5 * 5 * 6 + 2 * 5 * 6 * 6 + 18


def test_a_tensor_whose_first_axis_is_not_the_batch_is_not_a_cut() -> None:
    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows = Windows(8, 4, 2)
            self.fc = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.windows(x).mean(1))
            return y

    cuts = cuts_of(Swin(), (16, 8))
    assert all(cut.int8_bytes <= 16 * 8 for cut in cuts.cuts)
    assert [cut.name for cut in cuts.cuts if cut.name == "windows"]
    with pytest.raises(
        ConfigError, match="what crosses where it ends is not one float tensor for each input"
    ):
        cuts.find("windows.attention")


def test_a_module_that_runs_twice_has_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.fc = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.conv(torch.relu(self.conv(x))).mean((2, 3)))
            return y

    cuts = cuts_of(Twice())
    assert [cut.name for cut in cuts.cuts if cut.modules] == ["conv", "conv@2"]
    # Both halves need its weights.
    cut = cuts.find("conv")
    assert cut.head.weights + cut.tail.weights == cuts.whole.weights + 3 * 3 * 9 + 3


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_grow_from_cut_to_cut(name: str) -> None:
    _, cuts = found(name)
    assert len(cuts.cuts) > 3 and cuts.places()
    heads = [cut.head.macs for cut in cuts.cuts]
    assert heads == sorted(heads) and heads[-1] <= cuts.whole.macs
    assert len({cut.name for cut in cuts.cuts}) == len(cuts.cuts)
    peaks = [cut.peak_bytes for cut in cuts.cuts]
    assert peaks == sorted(peaks)


def test_a_name_in_a_wrapped_model_is_the_models_own() -> None:
    assert "backbone.1" in [cut.name for cut in found("logits")[1].cuts]
