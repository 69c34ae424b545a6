"""The restart: all of a rate-trained split once more with settings of its own, a wider early exit with it."""

from __future__ import annotations

from offramp.training.stages.rate import RateRecipe, RateTask
from offramp.training.stages.stage import Plan, Stage, Work


class RestartStage(Stage[RateRecipe]):
    """After the branch stage; only with a code."""

    name, place, stream = "restart", 50, 3 << 32
    recipe = RateRecipe
    default = RateRecipe(epochs=0, learning_rate=5e-4)
    of_code = optional = True

    def task(self, plan: Plan, work: Work) -> RateTask:
        return RateTask(work.model, plan.rho, self.settings(plan), work.unsplit)


STAGE = RestartStage()
