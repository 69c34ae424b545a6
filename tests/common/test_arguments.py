"""Values that several commands take, and how a wrong one is reported."""

from __future__ import annotations

import pytest

from offramp.common.arguments import Parser, fraction, number
from offramp.common.errors import ConfigError


def parse(*arguments: str) -> float:
    parser = Parser("offramp test")
    parser.add_argument("--share", type=fraction)
    parser.add_argument("--count", type=number(int, 1, 8, "1 … 8"))
    found = parser.parse_args(arguments)
    return float(found.share if found.count is None else found.count)


def test_a_value_in_its_range_is_taken() -> None:
    assert (parse("--share", "0"), parse("--share", "1e-3"), parse("--count", "8")) == (0, 1e-3, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", "1.1"), "argument --share: '1.1', expected 0 … 1 (see offramp test --help)"),
        (("--share", "nan"), "argument --share: 'nan', expected 0 … 1 (see offramp test --help)"),
        (("--count", "9"), "argument --count: '9', expected 1 … 8 (see offramp test --help)"),
        (("--count", "2.0"), "argument --count: '2.0', expected 1 … 8 (see offramp test --help)"),
        (("--none",), "unrecognized arguments: --none (see offramp test --help)"),
    ],
)
def test_any_other_is_one_error(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        parse(*arguments)
    assert str(wrong.value) == message
