from __future__ import annotations

import time

import pytest

from offramp.common.pause import pause


def test_a_pause_needs_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what a fake clock breaks."""

    def broken(_: float) -> None:
        raise OSError("fake clock")

    monkeypatch.setattr(time, "sleep", broken)
    pause(0.001)
