"""Which server is next: in order and round again, past those that want to be left alone."""

from __future__ import annotations

import pytest

from offramp.common.errors import ConfigError
from offramp.link.servers import Servers

ADDRESSES = ["a:1", "b:2", "c:3"]


@pytest.fixture
def servers() -> Servers:
    return Servers(ADDRESSES, failures=2, draw=lambda: 1.0)


def after(servers: Servers, now: float) -> str:
    servers.go_on(now)
    return servers.current.target


def test_they_are_tried_in_order_and_round_again(servers: Servers) -> None:
    assert servers.current.target == "a:1"
    assert [after(servers, 0) for _ in range(4)] == ["b:2", "c:3", "a:1", "b:2"]
    assert servers.current.target == "b:2"


def test_a_lone_server_is_its_own_successor() -> None:
    alone = Servers(["[::1]:7"], failures=1)
    assert not alone.go_on(0) and alone.current.target == "[::1]:7"
    alone.current.breaker.trip(0, "")
    alone.current.away_until = 100
    assert not alone.go_on(0) and not alone.better(0)


def test_one_that_asked_to_be_left_alone_or_failed_is_passed_over(servers: Servers) -> None:
    first = servers.current
    servers.go_on(0)
    servers.current.away_until = 50
    servers.go_on(0)
    servers.current.breaker.trip(0, "silent")
    servers.current = first
    assert after(servers, 0) == "a:1"
    # Its breaker has a probe due, and then the other's time is over.
    assert after(servers, 10) == "c:3"
    servers.current = first
    assert after(servers, 50) == "b:2"


def test_where_none_is_ready_the_first_to_be_is_next(servers: Servers) -> None:
    for seconds in (30, 20, 40):
        servers.current.away_until = seconds
        servers.go_on(0)
    assert servers.current.target == "b:2" or after(servers, 0) == "b:2"


def test_a_better_one_has_no_open_breaker(servers: Servers) -> None:
    assert not servers.better(0)
    servers.current.breaker.trip(0, "overloaded")
    assert servers.better(0) and servers.opens == 1
    for _ in range(2):
        servers.go_on(0)
        servers.current.breaker.trip(0, "overloaded")
    assert not servers.better(0) and servers.opens == 3


def test_a_round_is_over_when_all_have_failed(servers: Servers) -> None:
    for _ in range(2):
        servers.failed()
        assert not servers.round_is_over
    servers.failed()
    assert servers.round_is_over
    servers.failed()
    assert servers.round_is_over
    servers.worked()
    assert not servers.round_is_over


@pytest.mark.parametrize("address", ["a", "a:b", ":1", "::1:2"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--server"):
        Servers(["a:1", address], failures=1)
