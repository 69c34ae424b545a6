"""Command lines: the parser of every program and command of ours, and values that several of them take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

import offramp.common.libraries  # noqa: F401 - before whatever a program imports next
from offramp.common.errors import ConfigError, OutputError, printable
from offramp.common.release import version_line

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Number = TypeVar("Number", int, float)
UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # argparse's own drops what a full disk or a closed pipe refuses, and ends with 0.
        stream = sys.stdout if file is None else file
        try:
            stream.write(message)
            sys.stdout.flush()
        except OSError as error:
            raise OutputError(f"stdout: {error.strerror}; stopped") from None


class ShowVersion(argparse.Action):
    """``--version``; it looks for the compiled coder, which takes longer than ``--help`` may."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print release and coder, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser._print_message(version_line(parser.prog) + "\n")
        raise SystemExit(0)


def number(kind: Callable[[str], Number], low: float, high: float, expected: str) -> Callable[[str], Number]:
    """An argparse type: a flag's value, ``low`` to ``high``; anything else is an error: ``expected``."""

    def read(text: str) -> Number:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")

    return read


def byte_count(text: str) -> int:
    """An argparse type: bytes, as ``65536``, ``64k`` or ``1m`` (of 1024)."""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    found = int(digits) * UNITS.get(unit, 0) if digits.isascii() and digits.isdigit() else 0
    if not 0 < found < 1 << 32:
        raise argparse.ArgumentTypeError(f"'{printable(text, 40)}': expected bytes, as 65536, 64k or 1m")
    return found


fraction = number(float, 0, 1, "0 … 1")
"""An argparse type: a flag's value, 0 … 1."""

LEAST_POINTS = 0.1
"""Fewer points than these are a share that was meant."""
_points = number(float, 0, 100, "points, 0 … 100")


def points(text: str) -> float:
    """An argparse type: points of accuracy, 0 … 100. A share of one, as 0.01, is not mistaken for points."""
    value = _points(text)
    if 0 < value < LEAST_POINTS:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected points, 0 or {LEAST_POINTS:g} … 100; 1 is one of 100"
        )
    return value
