"""Bundles that ``offramp train`` makes of a recipe's text."""

from pathlib import Path

from offramp.training.app import main


def trained_bundle(text: str, folder: Path) -> Path:
    """The bundle of a recipe, made in ``folder``."""
    (folder / "recipe.toml").write_text(text)
    arguments = [str(folder / "recipe.toml"), "--out", str(folder / "bundle")]
    assert main([*arguments, "--checkpoints", str(folder / "checkpoints")]) == 0
    return folder / "bundle"
