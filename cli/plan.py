"""``offramp plan``: with what the head of each bundle needs as a program in C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offramp.bench import plan
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError
from offramp.training.split.board import Needs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return plan.main(argv, needs)


def needs(bundle: Path) -> Needs | None:
    """Its head as a program in C; None where C cannot run the head, or it is not a bundle."""
    try:
        return make_program(load_bundle(bundle)).needs
    except BundleError:
        return None
