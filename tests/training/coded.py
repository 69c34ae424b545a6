"""A recipe for the tiny backbone with a code at exit 5."""

from offramp.training.recipe import Recipe

CODE = """
[model.bottleneck]
channels = 4
stride = 2
width = 16
"""
TAIL = "[train.tail]\nepochs = 1\nlearning_rate = 0.01\n"
"""One epoch of the stage for the server's half."""


def code_text(text: str, *more: str, rate: float = 1.0) -> str:
    """``recipe_text`` with it at this price, and with further lines or tables."""
    text = text.replace("entropy = 1.0", f"rate = {rate}\ndistill = 0.5").replace("exit = 3", "exit = 5")
    return "".join([text, CODE, *more])


def with_code(text: str, *more: str, rate: float = 1.0) -> Recipe:
    """The recipe of `code_text`."""
    return Recipe.parse(code_text(text, *more, rate=rate))
