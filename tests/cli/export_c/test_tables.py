"""Constants of C, and codecs that there are not in C. The bytes: test_emit.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli.export_c.tables import array, make_coder
from offramp.common.errors import BundleError
from tests import toy


def test_an_array_is_written_in_short_lines() -> None:
    text = array("int8_t", "w", range(-128, 128))
    first, *lines, last = text.splitlines()
    assert (first, last) == ("static const int8_t w[] = {", "};")
    assert max(map(len, lines)) <= 110
    assert [int(each) for line in lines for each in line.split(",")[:-1]] == list(range(-128, 128))


def test_a_codec_that_there_is_not_is_refused(tmp_path: Path) -> None:
    bundle = toy.write_run_huffman(tmp_path)
    with pytest.raises(BundleError, match="is run-huffman, export-c takes rans, context, huffman and raw"):
        make_coder(bundle)
