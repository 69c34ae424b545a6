"""TOML of strangers in bounded time."""

from __future__ import annotations

import re
import tomllib
from typing import Any

PARTS = 100
"""Of a key: one of n parts takes the parser n² steps."""
_QUOTED = re.compile(r"""\"[^"\n]*\"|'[^'\n]*'""")


def parsed(text: str) -> dict[str, Any]:
    """What a TOML text says. Raises ValueError, in a few words, where it is something else or too deep."""
    if _longest_key(text) > PARTS:
        raise ValueError(f"a key has over {PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _longest_key(text: str) -> int:
    """Of how many parts the longest ``a.b.c`` is."""
    longest = parts = 0
    for part in _QUOTED.sub("q", text).split("."):
        parts += 1
        longest = max(longest, parts)
        if any(each in part.strip(" \t") for each in " \t\n=,[]{}#"):
            parts = 1
    return longest
