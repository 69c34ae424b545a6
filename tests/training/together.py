"""One of several processes that train together: ``python -m tests.training.together PLAIN CODED FOLDER``.

Of the recipe PLAIN, whose backbone is "tiny", it trains all stages and writes their losses; of CODED it makes
a bundle, as ``torchrun -m offramp.training.app`` would.
"""

import json
import sys
from pathlib import Path

from offramp.training.app import main
from offramp.training.data import sources
from offramp.training.hardware import Hardware
from offramp.training.loop import train
from offramp.training.recipe import Recipe
from tests.training.conftest import with_tiny


def losses(recipe: Path, checkpoints: Path) -> list[tuple[str, float, dict[str, float]]]:
    """Stage, loss and figures of each epoch of a training run on this machine's CPU."""
    read = Recipe.parse(recipe.read_text())
    trained = train(read, sources.load(read.data, seed=read.seed), checkpoints, hardware=Hardware())
    return [(epoch.stage, epoch.loss, epoch.figures) for epoch in trained.epochs]


if __name__ == "__main__":
    plain, coded, folder = map(Path, sys.argv[1:])
    with with_tiny():
        found = losses(plain, folder / "plain")
        if Hardware().is_main:
            (folder / "losses.json").write_text(json.dumps(found))
        arguments = [str(coded), "--out", str(folder / "bundle"), "--checkpoints", str(folder / "coded")]
        sys.exit(main([*arguments, "--device", "cpu", "--resume"]))
