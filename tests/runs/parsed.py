"""``offramp`` and ``python -m research.…`` in the smoke run of a script that would train for hours.

Each command is parsed, not run: the real program reads its arguments, recipes and variants; every folder and
file that it is given has to be there. What it would make is made, empty, so that the script goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from offramp.cli import app
from offramp.common.arguments import Parser

# Not from the programs themselves: a script has dozens of commands, and most need neither.
PAPER, PARETO = "python -m research.paper", "python -m research.pareto"
READ = Parser.parse_args


class Parsed(BaseException):
    """Ends a command where its arguments have been read."""


def read_only(self: Parser, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:
    raise Parsed(self.prog, READ(self, args, namespace))


def main() -> int:
    try:
        Parser.parse_args = read_only  # type: ignore[method-assign,assignment]
        if sys.argv[1] != "-m":
            return app.main()
        name, arguments = sys.argv[2], sys.argv[3:]
        assert name.startswith("research."), f"python -m {name} is not known to the smoke run"
        return int(importlib.import_module(f"{name}.__main__").main(arguments))
    except Parsed as parsed:
        prog, arguments = parsed.args
    given = vars(arguments)
    for name in ("recipe", "bundle", "whole", "paper", "images", "runs", "train_data", "test_data"):
        for path in listed(given.get(name)):
            assert Path(path).exists(), f"{prog}: {path} is not there"
    made = {"offramp train": trained, PAPER: reported, PARETO: pareto, "offramp step": stepped}
    if prog in made:
        made[prog](arguments)
    else:
        assert prog == "offramp demo", f"{prog} is not known to the smoke run"
    print(prog, "parsed")
    return 0


def trained(arguments: Namespace) -> None:
    from offramp.training import recipe_file as recipes

    nested = recipes.has_variants(arguments.recipe)
    for recipe, _ in recipes.read(arguments.recipe, settings=arguments.settings, only=arguments.only):
        bundle(arguments.out / recipe.name if nested else arguments.out)
    if arguments.export_test:
        arguments.export_test.mkdir(parents=True, exist_ok=True)


def stepped(arguments: Namespace) -> None:
    bundle(arguments.out)
    if arguments.export_test:
        arguments.export_test.mkdir(parents=True, exist_ok=True)


def reported(arguments: Namespace) -> None:
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)


def pareto(arguments: Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    point = f"{arguments.bundle[0].name}, WebP 20, T_c = 0.9, then 0.5"
    rows = [{"drop": drop, "point_pictures": point} for drop in (0.0, 1.0)]
    (arguments.out / "pareto.json").write_text(json.dumps(rows, indent=1))


def bundle(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")


def listed(value: Any) -> Iterable[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path) else value


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
