"""Latency and bytes over links: its arithmetic, its proxy, and one short run over a real shaped link."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from offramp.bench.processes import running
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, ExitCode
from research.links import link, shaped_link, steering
from research.links.delay_proxy import Line
from research.links.link_report import verdicts
from research.links.run import sample, weigh
from research.links.ways import thresholds_of
from tests.bench.conftest import namespaces
from tests.processes import Peer, tcp_peer


def test_a_sample_is_spread_over_all_that_are_chosen() -> None:
    chosen = np.arange(100) % 2 == 0
    assert sample(chosen, 50) == list(range(0, 100, 2))
    assert sample(chosen, 3) == [0, 48, 98]
    assert sample(np.zeros(4, bool), 3) == []


def test_means_weigh_what_is_sent_by_its_share() -> None:
    assert weigh(0.25, 100.0, 4.0) == 28.0
    assert weigh(0.0, 0.0, 4.0) == 4.0


def test_thresholds_are_the_bundle_s_its_best_and_all(toy_bundle: Bundle) -> None:
    assert thresholds_of(toy_bundle) == [0.8, 1.0]


def row(way: str, kind: str, accuracy: float, latency: float, payload: float) -> dict[str, Any]:
    figures = {"latency_ms_mean": latency, "payload_bytes_mean": payload, "interface_bytes_mean": 2 * payload}
    return {"link": "l", "way": way, "kind": kind, "accuracy": accuracy, **figures}


def test_a_rival_is_held_against_the_fastest_that_is_as_accurate() -> None:
    rows = [
        row("fast", "offramp", 0.90, 1.0, 10.0),
        row("middle", "offramp", 0.95, 2.0, 20.0),
        row("slow", "offramp", 0.95, 4.0, 0.0),
        row("JPEG", "rival", 0.95, 8.0, 40.0),
        row("whole", "rival", 0.97, 1.0, 10.0),
        row("early", "device", 0.90, 0.5, 0.0),
    ]
    jpeg, whole, early = verdicts(rows)

    assert (jpeg["ours"], jpeg["as_accurate"]) == ("middle", True)
    assert (jpeg["latency_ratio"], jpeg["payload_ratio"], jpeg["interface_ratio"]) == (4.0, 2.0, 2.0)
    assert (whole["ours"], whole["as_accurate"], whole["latency_ratio"]) == ("middle", False, 0.5)
    assert (early["ours"], early["latency_ratio"], early["payload_ratio"]) == ("fast", 0.5, 0.0)


def test_the_proxy_passes_on_all_of_it_in_order_and_later() -> None:
    def echo(client: socket.socket, peer: Peer) -> None:
        while data := client.recv(1 << 16):
            client.sendall(data)

    sent = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    with tcp_peer(echo) as peer:
        flags = ("--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{peer.port}", "--delay", "0.05")
        with running("research.links.delay_proxy", *flags) as proxy:
            host, _, port = proxy.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=30) as client:
                start = time.monotonic()
                client.sendall(sent[:1])
                assert client.recv(1) == sent[:1]
                assert time.monotonic() - start >= 0.1

                def write() -> None:
                    client.sendall(sent)
                    client.shutdown(socket.SHUT_WR)

                writer = threading.Thread(target=write)
                writer.start()
                received = b""
                while data := client.recv(1 << 16):
                    received += data
                writer.join()
    assert received == sent


def test_frames_take_their_time_on_a_line_one_after_the_other() -> None:
    line = Line(0.1, 1e6)
    # 100 and 3,000 bytes with the headers of one frame and of three.
    small, large = (100 + 66) * 8e-6, (3000 + 3 * 66) * 8e-6
    assert line.arrival(100, 5.0) == pytest.approx(5.1 + small)
    assert line.arrival(3000, 5.0) == pytest.approx(5.1 + small + large)
    assert line.arrival(100, 9.0) == pytest.approx(9.1 + small)
    assert Line(0.1, None).arrival(1 << 20, 5.0) == pytest.approx(5.1)


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for main in (link.main, steering.main):
        assert main([]) == ExitCode.CONFIG
        assert "root" in capsys.readouterr().err


def test_without_iproute2_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shaped_link, "_SEARCH", "")
    with pytest.raises(ConfigError, match="iproute2"):
        shaped_link.require_namespaces("a program")


@pytest.mark.parametrize(
    "flags", [["--links", "50"], ["--links", "x/y"], ["--thresholds", "2"], ["--sent", "0"]]
)
def test_flags_out_of_range_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert link.main(flags) == ExitCode.CONFIG
    assert flags[0] in capsys.readouterr().err


@namespaces
def test_a_short_run(
    toy_bundle: Bundle, labelled_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(toy_bundle.path), "--images", str(labelled_images)]
    command += ["--links", "1000/20", "--sent", "3", "--json", "--out", str(tmp_path)]

    assert link.main(command) == ExitCode.OK

    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "link.json").read_text()) == result
    for name in ("link-latency", "link-bytes"):
        assert all((tmp_path / f"{name}.{kind}").stat().st_size for kind in ("png", "svg"))
    rows = {row["way"]: row for row in result["rows"]}
    assert all(row["answers_that_differ"] == 0 for row in rows.values())
    raw = rows["raw INT8 activation"]
    assert raw["payload_bytes_mean"] == toy_bundle.codec.raw_bytes
    # Each way has its four segments at least, of 66 bytes of headers.
    assert raw["interface_bytes_mean"] > raw["payload_bytes_mean"] + 4 * 66
    assert raw["latency_ms_sent"]["p50"] >= 20
    everything = rows["Offramp, T_c = 1"]
    assert everything["offload_share"] == 1 and everything["runs_sent"] == 3
    for way in ("early exit alone", "whole model on the device"):
        assert rows[way]["interface_bytes_mean"] == 0 and rows[way]["runs_sent"] == 0
    assert any(name.startswith("WebP ") for name in rows)
    assert any(name.startswith("early exit + WebP ") for name in rows)


@namespaces
def test_a_link_that_cannot_be_made_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaped_link, "SERVER_HOST", "no address")
    with (
        pytest.raises(ConfigError, match=r"ip .*no address"),
        shaped_link.shaped_link(shaped_link.Shape(1e6, 0.0)),
    ):
        pass
