import pytest
import torch

from offramp.training.capture import CapturedSteps
from offramp.training.hardware import Hardware
from offramp.training.models.networks import BACKBONES
from offramp.training.stages.base import BaseTask
from offramp.training.stages.stage import StageRecipe
from offramp.training.steps import Steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_is_the_same_as_a_graph() -> None:
    torch.manual_seed(1)
    hardware = Hardware("cuda")
    task = BaseTask(BACKBONES["tiny"](10, 32))
    hardware.place(task)
    settings = StageRecipe(epochs=1, learning_rate=0.1)
    steps = Steps(task, settings, 1, weight_decay=0.0, momentum=0.9, hardware=hardware)
    captured = CapturedSteps(steps.gradients, list(task.parameters()), hardware.device)
    for size in (8, 16, 8):
        images = torch.randn(size, 3, 32, 32, device="cuda")
        labels = torch.randint(10, (size,), device="cuda")
        for _ in range(6):
            loss = captured(images, labels)
        found = [parameter.grad for parameter in task.parameters()]
        wanted = steps.gradients(images, labels)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(found, [parameter.grad for parameter in task.parameters()])
