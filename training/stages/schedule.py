"""The paper's schedule (Sec. V) and ours after it: each stage goes on from the best epoch of the one before.

    base         the backbone alone                    kept: best final-exit accuracy
    exit         with an early exit, Eq. (1)           kept: best mean of early and final accuracy
    code         only with a bottleneck: this alone    kept: smallest error and rate
    regularised  Eq. (2): Eq. (1) plus (3) and/or (6)  kept: best mean of early and final accuracy
                 with a bottleneck: answers and rate   kept: smallest loss
    branch       the early exit alone, or a wider one  kept: smallest loss
    restart      only with a bottleneck: all of it     kept: smallest loss
                 once more, the wider exit with it
    tail         only with a bottleneck: the server's  kept: smallest loss
                 half, on the INT8 head's own symbols

Accuracy is top-1 on the validation images. Of equally good epochs the last is kept: in the last stage it is
the one whose activations have had longest to shrink.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from offramp.training.stages.stage import Stage


def stages_in(folder: Path, package: str) -> tuple[Stage[Any], ...]:
    """The ``STAGE`` of each module of a package that has one, in the order in which they run."""
    modules = (import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules([str(folder)]))
    found = [module.STAGE for module in modules if hasattr(module, "STAGE")]
    return tuple(sorted(found, key=lambda stage: stage.place))


STAGES = stages_in(Path(__file__).parent, "offramp.training.stages")
