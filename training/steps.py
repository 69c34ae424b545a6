"""One training step after another: gradients, optimizer and learning rate of a stage's task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offramp.training.capture import CapturedSteps
from offramp.training.hardware import Hardware
from offramp.training.stages.stage import StageRecipe, Task


class Steps:
    """The steps of one stage; its learning rate falls to 0 along half a cosine.

    Args:
        task: placed on the device.
        settings: the stage's.
        total: how many steps there will be.
        weight_decay: where the stage has none of its own.
        momentum: of SGD.
        hardware: where it runs.
    """

    def __init__(
        self,
        task: Task,
        settings: StageRecipe,
        total: int,
        *,
        weight_decay: float,
        momentum: float,
        hardware: Hardware,
    ) -> None:
        decay = weight_decay if settings.weight_decay is None else settings.weight_decay
        optimizer = task.optimizer(settings.learning_rate, decay, momentum)
        self._scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, total))
        self._call, self._optimizer = hardware.prepare(task, optimizer)
        self._hardware = hardware
        self._captured: CapturedSteps | None = None
        if hardware.captures and task.capturable:
            parameters = list(task.parameters())
            self._captured = CapturedSteps(self.gradients, parameters, hardware.device)

    def step(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        """Learn from a batch; its loss, a scalar. ``measure``: the task's ``bits`` too."""
        if self._captured is None or measure:
            loss = self.gradients(images, labels, measure=measure)
        else:
            loss = self._captured(images, labels)
        self._optimizer.step()
        self._scheduler.step()
        return loss

    def gradients(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        """The loss of a batch, a scalar; its gradients are left in the parameters."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._hardware.autocast():
            loss: Tensor = self._call(images, labels, measure=measure)
        self._hardware.backward(loss)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"optimizer": self._optimizer.state_dict(), "scheduler": self._scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
