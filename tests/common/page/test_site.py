"""What the page's paths answer: files with a strict policy, a state with the figures of /metrics, and T_c."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from offramp.common.errors import ConfigError
from offramp.common.page.site import EVENTS, FILES, HEADERS, STREAM, THRESHOLD, Page, Reply, Site, figures
from tests.common.page.requests import headers, posted

TOKEN = "a-token-of-this-test"


class Program:
    """A program with a T_c."""

    def __init__(self, host: str = "127.0.0.1", *, token: str | None = None, sets: bool = True) -> None:
        self.threshold = 0.5
        self.steered = False
        self.registry = CollectorRegistry()
        self.extra: dict[str, Any] = {"bundle": "toy"}
        page = Page("edge-device", lambda: self.extra, self.set if sets else None, token)
        self.site = Site(page, self.registry, host)

    def set(self, value: float) -> float:
        if self.steered:
            raise ConfigError("T_c is steered")
        before, self.threshold = self.threshold, value
        return before

    def post(self, body: bytes, *lines: str, path: str = THRESHOLD, **options: Any) -> Reply:
        return self.site.post(path, posted(body, *lines, **options), lambda size: body[:size], "10.0.0.7")


def test_its_files_have_a_policy_without_a_way_out() -> None:
    site = Program().site
    for path, name in FILES.items():
        reply = site.get(path, headers())
        assert reply.status == 200, name
        assert reply.head().count(b"\r\n\r\n") == 1
        for header, value in HEADERS.items():
            assert f"\r\n{header}: {value}\r\n".encode() in reply.head()
        text = reply.body.decode()
        if name != "icon.svg":  # whose namespace is a name, not a request
            assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in text
        for unsafe in ("innerHTML", "insertAdjacent", "document.write", "eval(", " style=", " onclick"):
            assert unsafe not in text
    assert site.get("/", headers()).body.startswith(b"<!doctype html>")
    assert b"text/javascript" in site.get("/page.js", headers()).head()
    assert not site.has("/metrics")
    assert not site.has("/../etc/passwd")


def test_hostile_requests_are_refused_everywhere() -> None:
    program = Program()
    for path in (*FILES, EVENTS):
        assert program.site.get(path, headers(host="evil.example")).status == 403
        assert program.site.get(path, headers("Sec-Fetch-Site: cross-site")).status == 403
        assert program.site.get(path, headers("Origin: http://evil.example")).status == 403
    body = b'{"threshold": 0.1}'
    assert program.post(body, host="evil.example").status == 403
    assert program.post(body, "Sec-Fetch-Site: cross-site").status == 403
    assert (
        program.post(
            body, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"
        ).status
        == 403
    )
    assert program.post(body, "Origin: null").status == 403
    assert program.post(body, kind="text/plain").status == 415
    assert program.post(body, path="/").status == 405
    assert program.post(body, path="/elsewhere").status == 405
    assert program.site.get(THRESHOLD, headers()).status == 405
    assert program.threshold == 0.5


def test_events_are_a_stream() -> None:
    assert Program().site.get(EVENTS, headers("Sec-Fetch-Site: same-origin")) is STREAM
    assert b"Content-Type: text/event-stream" in STREAM.head()
    assert b"Content-Length" not in STREAM.head()


@pytest.mark.parametrize("value", [0, 0.25, 1, 1.0])
def test_the_threshold_is_set_and_logged(value: float, caplog: pytest.LogCaptureFixture) -> None:
    program = Program()
    with caplog.at_level(logging.INFO, "offramp"):
        reply = program.post(json.dumps({"threshold": value}).encode(), "Origin: http://127.0.0.1:9102")
    assert reply.status == 200
    assert json.loads(reply.body) == {"threshold": value}
    assert program.threshold == value
    assert f"T_c set from 0.5 to {value:g} on the page, by 10.0.0.7" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"0.5",
        b"null",
        b"{}",
        b'{"threshold": null}',
        b'{"threshold": "0.5"}',
        b'{"threshold": true}',
        b'{"threshold": -0.01}',
        b'{"threshold": 1.01}',
        b'{"threshold": NaN}',
        b'{"threshold": Infinity}',
        b'{"threshold": 1e999}',
        b'{"threshold": [0.5]}',
        b'{"threshold": 0.5, "more": 1}',
        b"\xff\xfe",
        b"[" * 1000,
    ],
)
def test_what_is_not_a_threshold_changes_nothing(body: bytes) -> None:
    program = Program()
    reply = program.post(body)
    assert (reply.status, program.threshold) == (400, 0.5)
    assert b"expected" in reply.body


def test_beyond_loopback_it_takes_a_token() -> None:
    body = b'{"threshold": 0.1}'
    for host in ("0.0.0.0", "::", "192.168.1.7", ""):
        program = Program(host)
        reply = program.post(body)
        assert (reply.status, program.threshold) == (403, 0.5)
        assert b"--page-token-file" in reply.body
        assert json.loads(program.site.state())["control"] == {"settable": False, "token": False}
    for host in ("0.0.0.0", "127.0.0.1"):
        program = Program(host, token=TOKEN)
        assert program.post(body).status == 401
        assert program.post(body, "Authorization: Bearer wrong").status == 401
        assert program.threshold == 0.5
        assert program.post(body, f"Authorization: Bearer {TOKEN}").status == 200
        assert program.threshold == 0.1
        assert TOKEN.encode() not in program.site.state()


def test_a_steered_one_says_so_and_a_server_has_none() -> None:
    program = Program()
    program.steered = True
    reply = program.post(b'{"threshold": 0.1}')
    assert (reply.status, reply.body) == (409, b"T_c is steered\n")
    assert Program(sets=False).post(b'{"threshold": 0.1}').status == 404


def test_its_state_is_one_line_with_the_figures_of_the_metrics() -> None:
    program = Program()
    gauge = Gauge("odd", "Labels.", ["name"], registry=program.registry)
    gauge.labels('<script>"\n\\ \u2028').set(2.5)
    gauge.labels("nothing").set(math.nan)
    program.extra = {"bundle": "toy", "recent": [{"name": "</script><img src=x onerror=alert(1)>\n\n"}]}
    said = program.site.state()
    assert b"\n" not in said
    state = json.loads(said)
    assert state["recent"][0]["name"] == "</script><img src=x onerror=alert(1)>\n\n"
    assert state["control"] == {"settable": True, "token": False}
    lines = dict(
        line.rsplit(" ", 1)
        for line in generate_latest(program.registry).decode().split("\n")
        if line[:1] not in ("", "#")
    )
    assert list(state["metrics"]) == list(lines)
    assert sorted(map(str, state["metrics"].values())) == ["2.5", "None"]
    assert figures(program.registry) == state["metrics"]
