"""What the stages with a bottleneck have in common, and both exits with the price of the code."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from offramp.training.fields import Weight
from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import folded
from offramp.training.models.split_model import Outputs, SplitModel
from offramp.training.stages.stage import StageRecipe, Task
from offramp.training.stages.taught import TaughtRecipe, answers_loss


class RateRecipe(TaughtRecipe):
    """A stage in which a bottleneck and both exits learn together.

    ``learning_rate`` is the bottleneck's; ``tail`` and ``head`` are the shares of it that the rest of the
    network on the server and on the device get, with the early exit; 0: stays as it is. ``rate`` is the loss
    of one KB of estimated payload for each image. ``distill`` is the final exit's, ``distill_early`` the
    early exit's.
    """

    rate: Weight = 0.0
    distill_early: Annotated[float, Field(ge=0, le=1)] = 0.0
    tail: Weight = 0.2
    head: Weight = 0.0


def price(sections: Mapping[str, StageRecipe]) -> float:
    """The rate of the last stage in which both halves of a rate-trained split learn."""
    joint = [one for one in sections.values() if isinstance(one, RateRecipe) and one.epochs > 0]
    return joint[-1].rate if joint else 0.0


class CodeTask(Task):
    """A split with its bottleneck, which learns at the stage's rate, other parts at shares of it.

    Args:
        model: with its bottleneck.
        head: share of the learning rate for what else is on the device; 0: it stays as it is, the running
            statistics of its batch norms too. An early exit behind the encoder learns with this.
        tail: share for what else is on the server; 0: it stays too.
        rate: loss of one KB of estimated payload.
    """

    def __init__(self, model: SplitModel, *, head: float, tail: float, rate: float) -> None:
        super().__init__()
        assert model.bottleneck is not None
        self.model, self.bottleneck, self.rate = model, model.bottleneck, rate
        # In a tuple: these are parts of the model already.
        self._parts: tuple[tuple[list[nn.Module], float], ...] = (
            (model.device_parts(), head),
            (model.server_parts(), tail),
            ([model.branch], 1.0 if model.exit_behind else head),
            ([model.bottleneck], 1.0),
        )
        for parts, share in self._parts:
            for part in parts:
                part.requires_grad_(share > 0)
        # In a list: no part of this module, so that it is neither trained nor kept in checkpoints.
        self._head = [model if head > 0 else folded(model)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for parts, share in self._parts:
            if share == 0:
                for part in parts:
                    part.eval()
        return self

    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        """AdamW: encoder, density and decoder differ too much in scale for one rate of SGD."""
        groups = [
            {"params": [p for part in parts for p in part.parameters()], "lr": share * learning_rate}
            for parts, share in self._parts
            if share > 0
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=decay)

    def activation(self, images: Tensor) -> Tensor:
        """`SplitModel.activation`, without a gradient where the head has nothing to learn."""
        (head,) = self._head
        with torch.set_grad_enabled(head is self.model and torch.is_grad_enabled()):
            return head.activation(images)

    def cost(self, code: Tensor, *, measure: bool) -> Tensor:
        """What a code [N, C, H, W] costs: its rate; and what fits the density, which adds nothing to it."""
        bits, fit = self.bottleneck.bits(code.float())
        self.bits = bits.detach() / code[0].numel() if measure else None
        # The density learns at its own pace, whatever the rate weighs: bits a symbol, over all channels.
        fit = fit / code[0, 0].numel()
        return self.price(bits) + (fit - fit.detach())

    def price(self, bits: Tensor) -> Tensor:
        """The loss for bits an image."""
        return bits * (self.rate / (8 * 1024))

    @abstractmethod
    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        """Outputs for a batch, and the mean of what the stage makes small beside the rate."""

    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        out, part = self.measured(images, labels)
        return {
            "early": float((out.early.argmax(1) == labels).sum()),
            "final": float((out.final.argmax(1) == labels).sum()),
            "loss": float(part) * len(labels),
            "bits": float(self.bottleneck.bits(out.activation.float())[0]) * len(labels),
        }

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        found = dict(means)
        bits = found.pop("bits")
        found["score"] = -(found["loss"] + float(self.price(torch.tensor(bits))))
        found["entropy_bits"] = bits / math.prod(self.bottleneck.shape)
        return found


class RateTask(CodeTask):
    """Both exits, what the unsplit model answers, and estimated bytes.

    Args:
        model: with its bottleneck.
        rho: weights of the exits' losses; None: equal ones.
        settings: the stage's own.
        teacher: the unsplit model; stays as it is.
    """

    def __init__(
        self, model: SplitModel, rho: list[float] | None, settings: RateRecipe, teacher: Backbone
    ) -> None:
        super().__init__(model, head=settings.head, tail=settings.tail, rate=settings.rate)
        self.rho = rho or [0.5, 0.5]
        self.settings = settings
        self._teacher = [folded(teacher)]

    def _outputs(self, images: Tensor) -> Outputs:
        code, early = self.model.encode(self.activation(images))
        return Outputs(early, self.model.tail(code), code)

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        out = self._outputs(images)
        with torch.no_grad():
            taught = self._teacher[0](images)
        unlabelled = self.settings.unlabelled(len(images))
        sent = out.activation[unlabelled:]
        return self.answers(out, labels, taught, unlabelled) + self.cost(sent, measure=measure)

    def answers(self, out: Outputs, labels: Tensor, taught: Tensor, unlabelled: int = 0) -> Tensor:
        """Loss of both exits' answers, from labels [N] and the teacher's logits [N, K]."""
        early, final = self.rho
        settings = self.settings
        return early * answers_loss(
            out.early, labels, taught, settings.distill_early, settings.temperature, unlabelled
        ) + final * answers_loss(
            out.final, labels, taught, settings.distill, settings.temperature, unlabelled
        )

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        out = self._outputs(images)
        return out, self.answers(out, labels, self._teacher[0](images))

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        found = super().figures(means)
        del found["loss"]
        return found
