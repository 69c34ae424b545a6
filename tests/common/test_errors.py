"""The tree of errors is the one that its module draws."""

from __future__ import annotations

import re

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common import errors
from offramp.common.errors import ExitCode, OfframpError, printable

LINE = re.compile(r"^[│ ]*(?:├── |└── )?(\w+Error) +(?:(\d+)  ([A-Z_]+)|exit  gRPC status)", re.MULTILINE)


def family(root: type[OfframpError]) -> list[type[OfframpError]]:
    """A class and all below it, in the order of their definition."""
    return [root, *(each for child in root.__subclasses__() for each in family(child))]


ALL = [each for each in family(OfframpError) if each.__module__ == errors.__name__]


def drawn() -> dict[str, tuple[str, str, str]]:
    """What the drawing says: class → parent, exit code, gRPC status."""
    assert errors.__doc__ is not None
    table: dict[str, tuple[str, str, str]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if found := LINE.match(line):
            depth = found.start(1) // 4
            path[depth:] = [found[1]]
            table[found[1]] = (path[depth - 1] if depth else "", found[2] or "", found[3] or "")
    return table


def test_the_drawing_has_every_class() -> None:
    assert set(drawn()) == {each.__name__ for each in ALL}


@pytest.mark.parametrize("error", ALL[1:], ids=lambda error: error.__name__)
def test_the_drawing_is_right(error: type[OfframpError]) -> None:
    parent = error.__mro__[1].__name__

    assert drawn()[error.__name__] == (parent, str(error.exit_code.value), error.grpc_status)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_status_is_one_of_grpcs_and_no_success(error: type[OfframpError]) -> None:
    assert grpc.StatusCode[error.grpc_status] is not grpc.StatusCode.OK
    assert error.exit_code is not ExitCode.OK
    assert error.__doc__


def test_exit_codes_are_distinct_and_leave_those_of_the_shell_alone() -> None:
    values = [code.value for code in ExitCode]

    assert len(set(values)) == len(values)
    assert all(
        value < 64 or code is ExitCode.INTERRUPTED for code, value in zip(ExitCode, values, strict=True)
    )


@given(st.text(), st.integers(1, 300))
def test_printable_is_one_line_of_bounded_length(text: str, limit: int) -> None:
    shown = printable(text, limit)

    assert shown.isprintable()
    assert len(shown) <= 10 * limit + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcode, 猫", "plain text, ünïcode, 猫"),
        ("a\nb\r\x1b[2J\x00", r"a\nb\r\x1b[2J\x00"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("x" * 300, "x" * 200 + "…"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
