"""What an experiment's command line has in common: errors are one line, and the exit status says which."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from offramp.common.errors import ExitCode, OfframpError


def run_program(name: str, body: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """Run a program on these arguments (None: the process's); returns its exit status."""
    try:
        return body(argv)
    except OfframpError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
