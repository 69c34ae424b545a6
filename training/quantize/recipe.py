"""``[quantize]`` of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from offramp.training.fields import Section, Weight


class QuantizeRecipe(Section):
    """Post-training quantization: share of the validation images that calibrates it.

    ``divergence``: how far the step of the transmitted activation may move an exit's answers, mean nats; 0:
    not at all, 256 codes over the range as in the paper.
    """

    calibration: Annotated[float, Field(gt=0, le=1)] = 0.25
    divergence: Weight = 0.01
