"""One of several processes that train together: ``python -m tests.training.together FOLDER``.

In FOLDER are ``plain.toml`` and ``coded.toml``, whose backbone is "tiny", and in ``alone`` the checkpoints
that one process left of them. Each stage is trained from those of the stages before it, and its loss goes to
``losses.json``. Then the coded one becomes a bundle, as by ``torchrun -m offramp.training.app``.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

from offramp.training.app import main
from offramp.training.data import sources
from offramp.training.data.datasets import Dataset
from offramp.training.hardware import Hardware
from offramp.training.loop import train
from offramp.training.progress import Epoch, Progress
from offramp.training.recipe import Recipe
from offramp.training.stages.schedule import STAGES
from tests.training.conftest import with_tiny


class Enough(Exception):
    """The stage is trained."""


def stage_loss(recipe: Recipe, data: Dataset, stage: str, alone: Path, checkpoints: Path) -> Epoch:
    """The one epoch of a stage that goes on from the checkpoints in ``alone`` of those before it."""
    hardware = Hardware()
    if hardware.is_main:
        checkpoints.mkdir()
        for path in alone.glob("*.pt"):
            if not path.name.startswith(f"{stage}-"):
                shutil.copy(path, checkpoints)
    found: list[Epoch] = []

    def after(epoch: Epoch) -> None:
        if epoch.stage == stage:
            found.append(epoch)
            raise Enough

    with contextlib.suppress(Enough):
        train(recipe, data, checkpoints, resume=True, hardware=hardware, progress=Progress(epoch=after))
    return found[0]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    losses: dict[str, float] = {}
    with with_tiny():
        for kind in ("plain", "coded"):
            recipe = Recipe.parse((folder / f"{kind}.toml").read_text())
            data = sources.load(recipe.data, seed=recipe.seed)
            for stage in STAGES:
                # The first ones are the same.
                if stage.present(recipe.plan) and (kind, stage.name) != ("coded", "base"):
                    name = f"{kind} {stage.name}"
                    checkpoints = folder / name.replace(" ", "-")
                    losses[name] = stage_loss(recipe, data, stage.name, folder / "alone", checkpoints).loss
        if Hardware().is_main:
            (folder / "losses.json").write_text(json.dumps(losses))
        arguments = [str(folder / "coded.toml"), "--out", str(folder / "bundle"), "--device", "cpu"]
        sys.exit(main([*arguments, "--checkpoints", str(folder / "alone"), "--resume"]))
