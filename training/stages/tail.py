"""The tail stage: the server's half, decoder included, on the symbols that the quantized head sends.

The stages before know rounding, but not the INT8 head, some of whose symbols are its neighbours'. It runs
here as it will on the device; quantized again, a head that has not changed is the same graph.
"""

from __future__ import annotations

import copy
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from offramp.common.part.session import session
from offramp.training.data.datasets import to_pixels
from offramp.training.export import export
from offramp.training.models.bottleneck import ZERO_POINT
from offramp.training.models.layers import folded
from offramp.training.quantize.quantize import quantize_calibrated
from offramp.training.stages.stage import Plan, Stage, StageRecipe, Task, Work, decisive
from offramp.training.stages.taught import answers_loss


class TailRecipe(StageRecipe):
    """The server's half alone learns from the symbols that the INT8 head sends, where there is a bottleneck.
    Without one, the step of the transmitted activation is chosen by the tail's own answers.

    ``distill`` and ``temperature`` as in `TaughtRecipe`.
    """

    distill: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0


class TailTask(Task):
    """The final exit's answers to what the INT8 head sends.

    Args:
        plan: of the recipe.
        work: the model with its bottleneck, its teacher, and validation images, of which some calibrate, as
            they do for the bundle.
        settings: the stage's own.
    """

    capturable = False

    def __init__(self, plan: Plan, work: Work, settings: TailRecipe) -> None:
        super().__init__()
        model = work.model
        assert model.bottleneck is not None
        self.model, self.settings = model, settings
        # In lists: no parts of this module, so that they are neither trained nor kept in checkpoints.
        self._learns = [*model.bottleneck.blocks()[1], *model.server_parts()]
        self._teacher = [folded(work.unsplit)]
        model.requires_grad_(False)
        for part in self._learns:
            part.requires_grad_(True)
        float_model = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        graphs = export(quantize_calibrated(float_model, work.validation, plan.quantize, plan.seed))
        self._head = session(graphs.head, threads=torch.get_num_threads())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        for part in self._learns:
            part.train(mode)
        return self

    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        """As in the stage before."""
        parameters = [p for part in self._learns for p in part.parameters()]
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=decay)

    def _sent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the device sends, and its early logits: float32 [N, *split_shape], [N, K]."""
        pixels = to_pixels(images).cpu().contiguous().numpy()
        symbols, early = (
            torch.from_numpy(one).to(images.device)
            for one in self._head.run(["symbols", "logits"], {"image": pixels})
        )
        code = (symbols.float() - ZERO_POINT).contiguous(memory_format=torch.channels_last)
        return code, early

    def _loss(self, answers: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
        return answers_loss(answers, labels, taught, self.settings.distill, self.settings.temperature)

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        code, _ = self._sent(images)
        with torch.no_grad():
            taught = self._teacher[0](images)
        return self._loss(self.model.tail(code), labels, taught)

    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        code, own = self._sent(images)
        answers = self.model.tail(code)
        return {
            "early": float((own.argmax(1) == labels).sum()),
            "final": float((answers.argmax(1) == labels).sum()),
            "loss": float(self._loss(answers, labels, self._teacher[0](images))) * len(labels),
        }

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return {"score": -means["loss"], "early": means["early"], "final": means["final"]}


class TailStage(Stage[TailRecipe]):
    """Last of all; only with a code."""

    name, place, stream = "tail", 60, 1 << 33
    recipe = TailRecipe
    default = TailRecipe(epochs=0, learning_rate=5e-4)
    of_code = optional = True

    def builds_on(self, earlier: str, plan: Plan) -> bool:
        # The early exit alone has no part in how the tail ends, unless the rest went on from it.
        return earlier != "branch" or plan.sections["restart"].epochs > 0

    def decides(self, plan: Plan) -> list[object]:
        return [decisive(self.settings(plan)), decisive(plan.quantize)]

    def task(self, plan: Plan, work: Work) -> TailTask:
        return TailTask(plan, work, self.settings(plan))


STAGE = TailStage()
