"""What a float32 model answers to labelled images, to compare the exported graphs with."""

from __future__ import annotations

import copy

import numpy as np
import torch

from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled, to_float
from offramp.training.models.split_model import SplitModel

_BATCH = 64


@torch.no_grad()
def run_float(model: SplitModel, data: Labelled, device: torch.device | None = None) -> Answers:
    """Answers of the float32 model, without symbols, computed on ``device`` (None: the CPU).

    ``model`` itself stays where and as it is.
    """
    device = device or torch.device("cpu")
    model = copy.deepcopy(model).to(device).eval()
    batches = torch.split(torch.from_numpy(data.images), _BATCH)
    # The default layout takes three times as long on a CPU.
    parts = [
        model(to_float(images.to(device)).contiguous(memory_format=torch.channels_last)) for images in batches
    ]
    early, final = (
        torch.cat([getattr(part, name) for part in parts]).float().cpu().numpy()
        for name in ("early", "final")
    )
    return Answers(np.empty((len(data), 0), np.uint8), early, final, data.labels)
