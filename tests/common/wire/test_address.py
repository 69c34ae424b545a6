"""HOST:PORT: what is printed is what flags take."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from offramp.common.errors import AddressError, ConfigError
from offramp.common.metrics import serve_metrics
from offramp.common.wire.address import join_address, split_address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fe80::1%eth0", "::", "a-b.example"])
def test_what_is_printed_is_read(host: str) -> None:
    assert split_address("--listen", join_address(host, 6101)) == (host, 6101)


BRACKETS = "expected an IPv6 address in brackets"
ALONE = "expected HOST:PORT alone, without a scheme or a path"
PORT = "expected HOST:PORT with a port of 0 … 65535"
HOST = "expected HOST:PORT, a name, an IPv4 address or"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("::1:6101", BRACKETS),
        ("::1", BRACKETS),
        ("fe80::1", BRACKETS),
        ("[::1:6101", BRACKETS),
        ("dns:///host", ALONE),
        ("dns:///host:50051", ALONE),
        ("unix:/run/offramp", ALONE),
        ("https://host:443", ALONE),
        ("host:443/path", ALONE),
        ("ipv4:127.0.0.1:50051", HOST),
        ("[host]:50051", HOST),
        ("[]:50051", HOST),
        ("[127.0.0.1]:50051", HOST),
        ("a]:50051", HOST),
        ("host", PORT),
        ("[::1]", PORT),
        (":50051", PORT),
        ("host:65536", PORT),
        ("host:-1", PORT),
    ],
)
def test_an_error_says_what_is_wrong_with_an_address(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_address("--server", address)

    assert str(caught.value).startswith(f"--server {address}: {message}")


def test_an_address_that_cannot_be_bound_is_printed_as_flags_take_it() -> None:
    with pytest.raises(AddressError, match=r"^metrics on \[2001:db8::1\]:9101: "):  # noqa: SIM117
        with serve_metrics(CollectorRegistry(), "2001:db8::1", 9101):
            pass
