import pytest
import torch

from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.stages.both_exits import BothExits


def task(**weights: float) -> BothExits:
    torch.manual_seed(0)
    return BothExits(SplitModel(BACKBONES["tiny"](10, 32), 3), None, 32, **weights)


def test_each_weight_adds_its_loss() -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    plain, cheap, sparse = (
        task(**weights)(images, labels).item() for weights in ({}, {"entropy": 1.0}, {"sparsity": 1.0})
    )
    assert cheap > plain and sparse > plain


@pytest.mark.parametrize("measure", [False, True])
def test_without_a_weight_the_entropy_is_only_measured(measure: bool) -> None:
    both = task()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    both(images, labels, measure=measure)
    assert (both.bits is not None) == measure
    assert both.capturable and not task(entropy=1.0).capturable


def test_the_best_epoch_has_the_best_mean_of_both() -> None:
    found = task().figures({"early": 0.5, "final": 0.9, "entropy_bits": 3.0})
    assert found == {"score": pytest.approx(0.7), "early": 0.5, "final": 0.9, "entropy_bits": 3.0}
