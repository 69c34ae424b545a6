"""The exit stage: the backbone with an early exit at the split, Eq. (1)."""

from __future__ import annotations

from offramp.training.stages.both_exits import BothExits
from offramp.training.stages.stage import Plan, Stage, StageRecipe, Work, decisive


class ExitStage(Stage[StageRecipe]):
    """The early exit joins."""

    name, place, stream = "exit", 10, 1
    recipe = StageRecipe

    def decides(self, plan: Plan) -> list[object]:
        return [plan.model.exit, plan.rho, decisive(self.settings(plan))]

    def task(self, plan: Plan, work: Work) -> BothExits:
        return BothExits(work.model, plan.rho, plan.bins)


STAGE = ExitStage()
