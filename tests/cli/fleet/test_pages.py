"""A page is read within a size and a time."""

from __future__ import annotations

import threading

from offramp.cli.fleet.pages import PAGE_BYTES, read_page


def test_a_page_of_a_million_bytes_is_read_within_its_time() -> None:
    """The parser's time grows with the page, not with its square."""
    line = 'offramp_server_frames_total{result="' + "a" * (PAGE_BYTES - 60) + '"} 3\n'
    done = threading.Event()

    def read() -> None:
        read_page(line, 0.0)
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(60)
