"""Stages in which the unsplit model teaches."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from offramp.training.stages.stage import StageRecipe


class TaughtRecipe(StageRecipe):
    """A stage in which the unsplit model teaches.

    ``distill`` is the share of an exit's loss that asks for the unsplit model's answers, at ``temperature``,
    in place of the labels.
    ``cutmix`` is the share of a batch's images that get a part of another one pasted over them. They have no
    label and cost no bytes: the unsplit model says what the answers are.
    """

    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    cutmix: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def unlabelled(self, count: int) -> int:
        return int(self.cutmix * count)


def answers_loss(
    logits: Tensor, labels: Tensor, taught: Tensor, share: float, warm: float, unlabelled: int = 0
) -> Tensor:
    """Loss of an exit's logits [N, K], from labels [N] and, by a share, from a teacher's logits [N, K] at a
    temperature; of the first ``unlabelled`` from the teacher alone."""
    softened = nn.functional.kl_div(
        torch.log_softmax(logits.float() / warm, dim=1),
        torch.log_softmax(taught.float() / warm, dim=1),
        log_target=True,
        reduction="none",
    ).sum(1)
    imitation, labelled = warm**2 * softened, slice(unlabelled, None)
    named = nn.functional.cross_entropy(logits[labelled], labels[labelled], reduction="sum")
    total = (1 - share) * named + share * imitation[labelled].sum() + imitation[:unlabelled].sum()
    return total / len(logits)
