"""The regularised stage: both exits, and an activation made cheap by Eq. (3) and (6), or a code's price."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from offramp.training.fields import Weight
from offramp.training.stages.both_exits import BothExits
from offramp.training.stages.rate import RateRecipe, RateTask
from offramp.training.stages.stage import Plan, Stage, Task, Work, decisive


class RegularisedRecipe(RateRecipe):
    """The joint stage: lambda_e and N_b of Eq. (3), lambda_s of Eq. (6), or a bottleneck's losses.

    ``webp`` are qualities: the stage then sees each image as it is or as WebP of one of them leaves it, for a
    server that is sent pictures.
    """

    entropy: Weight = 0.0
    sparsity: Weight = 0.0
    bins: Annotated[int, Field(ge=2)] = 256
    webp: list[Annotated[int, Field(ge=0, le=100)]] = Field(default_factory=list)

    def qualities(self) -> list[int]:
        return self.webp


class RegularisedStage(Stage[RegularisedRecipe]):
    """The last of the paper's."""

    name, place, stream = "regularised", 30, 2
    recipe = RegularisedRecipe
    samples_entropy = True

    def check(self, plan: Plan) -> None:
        own, code = self.settings(plan), plan.model.bottleneck
        if code is None and own.rate > 0:
            raise ValueError("train.regularised.rate is the price of a code: needs model.bottleneck")
        if code is None and own.cutmix > 0:
            raise ValueError("train.regularised.cutmix has the unsplit model teach: needs model.bottleneck")
        if code is not None and (own.entropy > 0 or own.sparsity > 0):
            raise ValueError("model.bottleneck takes train.regularised.rate, not entropy or sparsity")
        if code is not None and own.epochs == 0:
            raise ValueError("model.bottleneck is trained in the last stage: train.regularised.epochs is 0")

    def decides(self, plan: Plan) -> list[object]:
        return [decisive(self.settings(plan)), decisive(plan.model)]

    def task(self, plan: Plan, work: Work) -> Task:
        own = self.settings(plan)
        if work.model.bottleneck is not None:
            return RateTask(work.model, plan.rho, own, work.unsplit)
        return BothExits(work.model, plan.rho, plan.bins, entropy=own.entropy, sparsity=own.sparsity)


STAGE = RegularisedStage()
