"""Flags of the upstream server: what they make, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.common.errors import ConfigError
from offramp.server.metrics import ServerMetrics
from offramp.server.settings import ServerSettings
from offramp.server.upstream import Upstream


def made(**settings: Any) -> Upstream | None:
    return Upstream.of(ServerSettings(bundle=("DIR",), **settings), ServerMetrics())


def test_without_the_flag_there_is_none() -> None:
    assert made() is None


def test_the_link_is_as_the_flags_say_and_nobody_waits_for_its_window() -> None:
    upstream = made(upstream="a:1,b:2", upstream_insecure=True, upstream_timeout=3, upstream_window=9)
    assert upstream is not None
    assert (upstream.servers, upstream.breaker) == (("a:1", "b:2"), 5)
    assert not upstream.prefer_first
    preferring = made(upstream="a:1,b:2", upstream_insecure=True, upstream_prefer_first=True)
    assert preferring is not None and preferring.prefer_first
    assert (upstream.pace.timeout, upstream.pace.window, upstream.pace.waits) == (3, 9, False)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"upstream": "cloud"}, "--upstream cloud: expected HOST:PORT"),
        (
            {"upstream": "cloud:1"},
            "--upstream cloud: the connection would be plaintext; say --upstream-insecure to",
        ),
        (
            {"upstream": "127.0.0.1:1", "upstream_tls_cert": "a"},
            "--upstream-tls-cert and --upstream-tls-key:",
        ),
        (
            {"upstream": "127.0.0.1:1", "upstream_tls_server_name": "a"},
            "expected --upstream-tls or --upstream-",
        ),
        ({"upstream": "127.0.0.1:1", "upstream_token_file": "/nowhere"}, "--upstream-token-file /nowhere:"),
    ],
)
def test_what_cannot_work_is_named_by_its_flag(settings: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**settings)
    assert error in str(caught.value)
