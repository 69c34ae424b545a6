"""Whose requests are answered: not those of other sites, of names that were made to point here, and junk."""

from __future__ import annotations

import pytest

from offramp.common.page import guard
from offramp.common.page.guard import Refused, body_bytes, check, check_token, own_names
from tests.common.page.requests import headers, posted

NAMES = own_names("127.0.0.1", "Camera-1")
TOKEN = "a-token-of-this-test"
DOCUMENT = ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9102",
        "localhost:9102",
        "LOCALHOST",
        "[::1]:9102",
        "[::1]",
        "192.168.1.7:80",
        "camera-1:9102",
        "127.0.0.1:",
    ],
)
def test_an_address_and_own_names_are_ours(host: str) -> None:
    check(headers(host=host), NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9102",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "",
        ":9102",
        "localhost:9102x",
        "[::1",
        "[::1]evil",
        "[evil]",
        "127.0.0.1:9102,evil.example",
        "2130706433.x",
    ],
)
def test_another_name_is_not(host: str) -> None:
    with pytest.raises(Refused, match="unknown Host") as refused:
        check(headers(host=host), NAMES)
    assert refused.value.status == 403


def test_a_host_is_said_once() -> None:
    with pytest.raises(Refused, match="unknown Host"):
        check(headers(host=None), NAMES)
    with pytest.raises(Refused, match="more than one Host") as refused:
        check(headers("Host: localhost"), NAMES)
    assert refused.value.status == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site", "junk"])
def test_a_request_of_another_site_is_refused(site: str) -> None:
    with pytest.raises(Refused, match="another site"):
        check(headers(f"Sec-Fetch-Site: {site}"), NAMES)
    with pytest.raises(Refused, match="another site"):
        check(headers(f"Sec-Fetch-Site: {site}", *DOCUMENT), NAMES)
    with pytest.raises(Refused, match="another site"):
        check(
            headers(f"Sec-Fetch-Site: {site}", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: iframe"),
            NAMES,
            opens_page=True,
        )


def test_a_link_of_another_site_opens_the_page() -> None:
    check(headers("Sec-Fetch-Site: cross-site", *DOCUMENT), NAMES, opens_page=True)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_pages_own_request_is_answered(site: str) -> None:
    check(headers(f"Sec-Fetch-Site: {site}", "Origin: http://127.0.0.1:9102"), NAMES)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:9103",
        "http://127.0.0.1:9102.evil.example",
        "ftp://127.0.0.1:9102",
        "",
    ],
)
def test_another_origin_is_refused(origin: str) -> None:
    with pytest.raises(Refused, match="another site"):
        check(headers(f"Origin: {origin}"), NAMES)


def test_a_body_is_json_and_short() -> None:
    assert body_bytes(posted(b"{}")) == 2
    assert body_bytes(posted(b"{}", kind="application/json; charset=utf-8")) == 2
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        "application/jsonx",
    ):
        with pytest.raises(Refused) as refused:
            body_bytes(posted(b"{}", kind=kind))
        assert refused.value.status == 415
    with pytest.raises(Refused) as refused:
        body_bytes(posted(b" " * (guard.BODY_BYTES + 1)))
    assert refused.value.status == 413


@pytest.mark.parametrize("length", ["", "-1", "1.5", "0x2", "²", "9" * 40])
def test_a_length_is_a_number(length: str) -> None:
    with pytest.raises(Refused) as refused:
        body_bytes(headers("Content-Type: application/json", f"Content-Length: {length}"))
    assert refused.value.status == 411


def test_a_body_in_chunks_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        body_bytes(posted(b"{}", "Transfer-Encoding: chunked"))
    assert refused.value.status == 411


def test_the_token_and_no_other() -> None:
    check_token(headers(f"Authorization: Bearer {TOKEN}"), TOKEN)
    check_token(headers(f"Authorization: bearer  {TOKEN} "), TOKEN)
    for said in (
        "",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \udcff",
        "Bearer é",
    ):
        with pytest.raises(Refused) as refused:
            check_token(headers(f"Authorization: {said}"), TOKEN)
        assert refused.value.status == 401
        assert TOKEN not in str(refused.value)
    with pytest.raises(Refused):
        check_token(headers(), TOKEN)
