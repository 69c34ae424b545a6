"""Both exits of a split, and what keeps its activation cheap: the paper's losses."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.training.losses import EntropyLoss, objective, sparsity_loss
from offramp.training.models.split_model import SplitModel
from offramp.training.stages.stage import PapersTask


class BothExits(PapersTask):
    """Eq. (2): Eq. (1) plus Eq. (3) and (6) by their weights.

    Args:
        model: without a bottleneck.
        rho: weights of the exits' losses; None: equal ones.
        bins: of the entropy's histogram.
        entropy: lambda_e; 0: it is only measured, as every split stage reports it.
        sparsity: lambda_s.
    """

    def __init__(
        self,
        model: SplitModel,
        rho: list[float] | None,
        bins: int,
        *,
        entropy: float = 0.0,
        sparsity: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.rho, self.sparsity = model, rho, sparsity
        self.entropy = EntropyLoss(entropy, bins=bins, shared=True)
        # The histogram's counts are waited for on the CPU.
        self.capturable = entropy == 0

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        out = self.model(images)
        loss = objective([out.early, out.final], labels, self.rho)
        self.bits = None
        if self.entropy.weight > 0:
            bits = self.entropy.bits(out.activation)
            loss = loss + self.entropy.relative(bits)
            self.bits = bits.detach()
        elif measure:
            with torch.no_grad():
                self.bits = self.entropy.bits(out.activation)
        if self.sparsity > 0:
            loss = loss + sparsity_loss(out.activation, self.sparsity)
        return loss

    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        out = self.model(images)
        # The validation images' own mu and sigma: the running ones exist only while the regulariser is on.
        meter = EntropyLoss(0.0, bins=self.entropy.bins).to(images.device)
        return {
            "early": float((out.early.argmax(1) == labels).sum()),
            "final": float((out.final.argmax(1) == labels).sum()),
            "entropy_bits": float(meter.bits(out.activation)) * len(labels),
        }

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return {"score": (means["early"] + means["final"]) / 2, **means}
