"""What validation images decide about exported graphs: the codec, who answers a sent image, and T_c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.training.calibrate.codebook import Candidate, choose_codec
from offramp.training.calibrate.measure import Answers, lowest_threshold, with_better_answer
from offramp.training.quantize.quantize import calibration_part
from offramp.training.recipe import Recipe

# Tables are settled long before this many symbols, and counting them takes ten times their memory.
_CODEC_SYMBOLS = 1 << 23


def choose_on_validation(seen: Answers, recipe: Recipe) -> tuple[Candidate, Answers, float]:
    """What validation images decide: the codec, who answers a sent image (in ``seen`` again), and T_c."""
    codec = choose_codec(*calibrating(seen.symbols, recipe))
    seen = with_better_answer(seen)
    return codec, seen, lowest_threshold(seen, recipe.threshold.drop)


def calibrating(symbols: NDArray[np.uint8], recipe: Recipe) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of the validation images' symbols, uint8 [N, C, H, W]: what tables are counted on, and compete on."""
    parts = calibration_part(len(symbols), share=recipe.quantize.calibration, seed=recipe.seed)
    most = max(1, _CODEC_SYMBOLS // symbols[0].size)
    counted, competing = (symbols[part[:most]] for part in parts)
    return counted, competing
