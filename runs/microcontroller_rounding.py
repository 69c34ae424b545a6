"""How far a head's answers would be others if CMSIS-NN rounded the sums of its convolutions.

    python runs/microcontroller_rounding.py models/digits-mobilenetv2-exit12 examples/digits

CMSIS-NN multiplies a sum with a 31-bit integer and shifts it, where ONNX Runtime, the server's training and
`offramp export-c` multiply it in float32. Its two ways (arm_nn_requantize, with and without
CMSIS_NN_USE_SINGLE_ROUNDING) are written here from their description and put in the place of `requantize` of
the exported C; additions and logits stay as they are. Every picture is computed with each.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from microcontroller import asked
from numpy.typing import NDArray

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import Program, make_program

NAME = "requantize("
FIXED = """
/* scale = multiplier / 2^31 * 2^shift, with 31 bits of it. */
static int32_t multiplier_of(float scale, int *shift)
{
    double share = frexp((double)scale, shift);
    int64_t found = llround(share * 2147483648.0);
    if (found == 2147483648LL) {
        found /= 2;
        *shift += 1;
    }
    return (int32_t)found;
}

static uint8_t clamped(int64_t value)
{
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}
"""
ONCE = """
static uint8_t requantize(int32_t sum, float scale, int32_t zero)
{
    int shift;
    int64_t product = (int64_t)sum * multiplier_of(scale, &shift);
    return clamped((((product >> (30 - shift)) + 1) >> 1) + zero);
}
"""
TWICE = """
static uint8_t requantize(int32_t sum, float scale, int32_t zero)
{
    int shift;
    int64_t multiplier = multiplier_of(scale, &shift);
    int left = shift > 0 ? shift : 0, right = shift < 0 ? -shift : 0;
    int64_t high = (((int64_t)sum << left) * multiplier + (1LL << 30)) >> 31;
    /* Halves away from zero. */
    int64_t rest = high & ((1LL << right) - 1), half = ((1LL << right) - 1) >> 1;
    return clamped((high >> right) + (rest > half + (high >> right < 0)) + zero);
}
"""
MAIN = """
#include "offramp_layers.h"
#include "offramp_model.h"
#include <stdio.h>
static _Alignas(8) uint8_t arena[OFFRAMP_ARENA_BYTES];
static uint8_t pixels[PICTURE_BYTES];
static float logits[OFFRAMP_CLASSES];
int main(void)
{
    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) {
        offramp_run(pixels, arena, logits);
        fwrite(arena + OFFRAMP_SYMBOLS_AT, 1, SYMBOL_BYTES, stdout);
        fwrite(logits, sizeof *logits, OFFRAMP_CLASSES, stdout);
    }
    return 0;
}
"""
WAYS = {"rounded once": FIXED + ONCE, "rounded twice": FIXED + TWICE}


def main() -> None:
    """Compile, run, compare, print."""
    bundle, images = asked(__doc__, 1_000_000)
    print(json.dumps(compared(make_program(bundle), images), indent=1))


def compared(program: Program, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Symbols and early answers that differ; images: uint8 [N, 3, H, W]."""
    symbols, logits = answers(program, images, None)
    found: dict[str, Any] = {"images": len(images), "symbols": int(symbols.size)}
    for name, text in WAYS.items():
        own, early = answers(program, images, text)
        apart = np.abs(own.astype(int) - symbols)
        found[name] = {
            "symbols_that_differ": int((apart > 0).sum()),
            "by_more_than_one": int((apart > 1).sum()),
            "images_with_such": int((apart > 0).any(axis=1).sum()),
            "images_with_other_logits": int((early != logits).any(axis=1).sum()),
            "images_with_another_class": int((early.argmax(axis=1) != logits.argmax(axis=1)).sum()),
        }
    return found


def answers(
    program: Program, images: NDArray[np.uint8], rounding: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symbols, uint8 [N, S], and logits, float32 [N, K]; rounding: in place of the exported `requantize`."""
    network = program.network
    symbols, classes = network.tensors[network.symbols].whole_bytes, network.classes
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for file, data in write_files(program).items():
            (work / file).write_bytes(data)
        if rounding is not None:
            layers = work / "offramp_layers.c"
            layers.write_text(replaced(layers.read_text(), rounding))
        (work / "rounding.c").write_text(MAIN)
        sizes = [f"-DPICTURE_BYTES={images[0].size}", f"-DSYMBOL_BYTES={symbols}", "-DOFFRAMP_NO_HEAP"]
        files = ["rounding.c", "offramp_layers.c", "offramp_model.c"]
        build = ["cc", "-std=c11", "-O3", "-march=native", *sizes, "-o", "rounding", *files, "-lm"]
        subprocess.run(build, cwd=work, check=True)
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes()
        found = subprocess.run([work / "rounding"], input=pixels, check=True, capture_output=True).stdout
    rows = np.frombuffer(found, np.uint8).reshape(len(images), symbols + 4 * classes)
    return rows[:, :symbols], np.ascontiguousarray(rows[:, symbols:]).view(np.float32)


def replaced(source: str, rounding: str) -> str:
    """The C of the layers with another function `requantize`."""
    start = source.index("static uint8_t " + NAME)
    return source[:start] + rounding + source[source.index("\n}\n", start) + 3 :]


if __name__ == "__main__":
    main()
