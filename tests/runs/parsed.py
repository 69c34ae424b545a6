"""``offramp`` in the smoke run of a script that would train for hours: each command is parsed, not run.

The real program reads its arguments, recipes and variants; every folder and file that it is given has to be
there. What it would make is made, empty, so that the script goes on.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from offramp.cli import app
from offramp.common.settings import Parser

READ = Parser.parse_args


class Parsed(BaseException):
    """Ends a command where its arguments have been read."""


def read_only(self: Parser, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:
    raise Parsed(self.prog, READ(self, args, namespace))


def main() -> int:
    try:
        with patch.object(Parser, "parse_args", read_only):
            return app.main()
    except Parsed as parsed:
        prog, arguments = parsed.args
    given = vars(arguments)
    for name in ("recipe", "bundle", "whole", "paper", "images", "runs", "train_data", "test_data"):
        for path in listed(given.get(name)):
            assert Path(path).exists(), f"{prog}: {path} is not there"
    made = {"offramp train": trained, "offramp report": reported, "offramp step": stepped}
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
    if arguments.out is None:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    if "pareto" in arguments.what:
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
    sys.exit(main())
