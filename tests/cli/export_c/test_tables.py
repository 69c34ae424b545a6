"""Constants of C, and an order of channels. The bytes: test_emit.py."""

from __future__ import annotations

from pathlib import Path

from offramp.cli.export_c.tables import array, make_coder
from tests import toy


def test_an_array_is_written_in_short_lines() -> None:
    text = array("int8_t", "w", range(-128, 128))
    first, *lines, last = text.splitlines()
    assert (first, last) == ("static const int8_t w[] = {", "};")
    assert max(map(len, lines)) <= 110
    assert [int(each) for line in lines for each in line.split(",")[:-1]] == list(range(-128, 128))


def test_channels_go_to_lanes_in_the_order_of_their_tables(tmp_path: Path) -> None:
    coder = make_coder(toy.write_run_huffman(tmp_path, lanes=2))
    assert "offramp_channel_order[] = {\n    0, 2, 1, 3,\n};" in coder.code
    # 256 cells, and 4 x 17 with a full run.
    assert coder.flash_bytes == 3 * (256 + 69) + 2 * 16 + 5 * 4
