"""A link that is as slow as wanted."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("matplotlib")

from offramp.common.errors import ConfigError
from research.links import shaped_link
from tests.bench.conftest import namespaces


def test_without_iproute2_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shaped_link, "_SEARCH", "")
    with pytest.raises(ConfigError, match="iproute2"):
        shaped_link.require_namespaces("a program")


@namespaces
def test_a_link_that_cannot_be_made_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaped_link, "SERVER_HOST", "no address")
    with (
        pytest.raises(ConfigError, match=r"ip .*no address"),
        shaped_link.shaped_link(shaped_link.Shape(1e6, 0.0)),
    ):
        pass
