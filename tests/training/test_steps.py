import pytest
import torch

from offramp.training.hardware import Hardware
from offramp.training.models.networks import BACKBONES
from offramp.training.stages.base import BaseTask
from offramp.training.stages.stage import StageRecipe
from offramp.training.steps import Steps


def steps(task: BaseTask, total: int, weight_decay: float | None = None) -> Steps:
    stage = StageRecipe(epochs=1, learning_rate=0.1, weight_decay=weight_decay)
    return Steps(task, stage, total, weight_decay=0.5, momentum=0.9, hardware=Hardware())


def test_the_learning_rate_falls_to_0_along_half_a_cosine() -> None:
    torch.manual_seed(0)
    running = steps(BaseTask(BACKBONES["tiny"](10, 32)), 4)
    rates = []
    for _ in range(4):
        rates.append(running.state()["optimizer"]["param_groups"][0]["lr"])
        running.step(torch.randn(4, 3, 32, 32), torch.arange(4), measure=False)
    rates.append(running.state()["optimizer"]["param_groups"][0]["lr"])
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)


def test_a_stage_may_have_a_weight_decay_of_its_own() -> None:
    task = BaseTask(BACKBONES["tiny"](10, 32))
    decays = [
        one.state()["optimizer"]["param_groups"][0]["weight_decay"]
        for one in (steps(task, 1), steps(task, 1, weight_decay=0.25))
    ]
    assert decays == [0.5, 0.25]


def test_gradients_do_not_add_up() -> None:
    torch.manual_seed(0)
    task = BaseTask(BACKBONES["tiny"](10, 32))
    running = steps(task, 1)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    first, second = (
        (running.gradients(images, labels), [one.grad for one in task.parameters()])[1] for _ in range(2)
    )
    torch.testing.assert_close(first, second)
