"""``offramp top`` against the pages of real devices and servers, and against pages that mean harm."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from offramp.cli import app
from offramp.common.bundle.load import Bundle
from tests.processes import Peer, Processes, Program, closed_port, processes, tcp_peer, until


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    with processes(toy_bundle.path) as started:
        yield started


def start_top(run: Processes, *arguments: object) -> Program:
    return run.start([sys.executable, "-m", "offramp.cli.app", "top", *map(str, arguments)])


def once(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and the object of ``--once --json``."""
    status = app.main(["top", "--once", "--json", "--interval", "0.1", *map(str, arguments)])
    output, errors = capsys.readouterr()
    assert errors == ""
    record: dict[str, Any] = json.loads(output)
    return status, record


def row_of(record: dict[str, Any], kind: str, target: str) -> dict[str, Any]:
    (found,) = (row for row in record[kind] if row["target"] == target)
    return dict(found)


# --- real programs ---


def test_the_figures_are_the_devices_own(
    run: Processes, picture_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    server = run.server("--pictures", picture_bundle.path)
    flags = ["--server", server.address, "--json", "--hold", "--metrics-port", 0]
    flags += ["--picture-threshold", 0.6]
    devices = [
        run.start_device(*flags, "--threshold", threshold, "-", stdin=subprocess.PIPE)
        for threshold in (0.7, 1)
    ]
    addresses = [device.wait_for(r"metrics on (\S+)")[1] for device in devices]
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": [server.metrics_url.split("/")[2], *addresses]}]))
    watching = start_top(run, "--json", "--interval", 0.1, "--window", 3600, targets)
    until(lambda: watching.records and len(watching.records[-1]["devices"]) == 2, "both devices")
    assert [row["images"] for row in watching.records[-1]["devices"]] == [0, 0]
    for device in devices:
        assert device.process.stdin is not None
        device.process.stdin.write("".join(f"{image}\n" for image in sorted(toy_images.glob("*.png"))))
        device.process.stdin.flush()
    for device in devices:
        until(lambda device=device: len(device.answers) == 40, "40 answers")  # type: ignore[misc]
    last = len(watching.records)
    until(lambda: len(watching.records) > last + 2, "the pages of after")
    record = watching.records[-1]
    watching.send(signal.SIGINT)
    assert watching.wait() == 130
    for device in devices:
        device.send(signal.SIGINT)
        device.wait()
        assert device.process.stdin is not None
        device.process.stdin.close()

    for device, address in zip(devices, addresses, strict=True):
        row, summary = row_of(record, "devices", address), device.summary
        assert row["bundles"] == ["toy"] and row["connected"] and not row["breaker_open"]
        assert row["images"] == summary["images"] == 40
        assert row["threshold"] == summary["threshold"]
        assert row["exit_rate"] == summary["exit_rate"]
        assert row["fallbacks"] == summary["fallback"] == 0
        assert row["payload_bytes"] == summary["payload_bytes"]
        assert row["raw_activation_bytes"] == summary["raw_activation_bytes"]
        # Of the activations: pictures save nothing of theirs.
        coded = summary["payload_bytes"] - summary["picture_bytes"]
        assert row["saved"] == pytest.approx(1 - coded / summary["raw_activation_bytes"])
        assert summary["pictures"]
        # The stream's end costs a few bytes more.
        assert 0 <= summary["wire_bytes"]["sent"] - row["wire_bytes_sent"] < 200
        assert row["wire_bytes_sent_per_image"] == row["wire_bytes_sent"] / 40
        assert 0 < row["round_trip_seconds_median"] <= row["round_trip_seconds_p99"]
        assert row["head_seconds"] > 0
    (served,) = record["servers"]
    asked = sum(device.summary["server"] + device.summary["pictures"] for device in devices)
    assert served["frames_per_second"] * served["seconds"] == pytest.approx(asked)
    assert served["streams"] == 2 and served["queue"] == 0 and served["queue_limit"] == 1024
    assert served["refused"] == 0 and served["rejected"]["overloaded"] == 0
    assert 1 <= served["batch"] <= asked
    assert record["failed"] == []


def test_the_table_shows_both_kinds_and_what_failed(run: Processes) -> None:
    server = run.server()
    with closed_port() as port:
        program = start_top(
            run, "--once", "--interval", 0.1, server.metrics_url, f"127.0.0.1:{port}", "--timeout", 5
        )
        assert program.wait() == 3
    text = "\n".join(program.stdout)
    assert "1 servers" in text and "0 of 1,024" in text
    assert f"127.0.0.1:{port}: All connection attempts failed" in text


def test_an_endpoint_that_goes_away_and_comes_back(run: Processes) -> None:
    server = run.server()
    watching = start_top(run, "--json", "--interval", 0.1, server.metrics_url.split("/")[2])
    until(lambda: watching.records and watching.records[-1]["servers"], "the server")
    assert server.drain() == 0
    until(lambda: watching.records[-1]["failed"], "it to be gone")
    assert watching.records[-1]["servers"] == []
    port = server.metrics_url.split(":")[2].split("/")[0]
    # The last one of a flag counts.
    run.server("--metrics-port", port)
    until(lambda: watching.records[-1]["servers"], "it to be back")
    watching.send(signal.SIGTERM)
    watching.wait()


def test_targets_follow_their_file(run: Processes, tmp_path: Path) -> None:
    server = run.server()
    targets = tmp_path / "targets.json"
    targets.write_text("[]")
    watching = start_top(run, "--json", "--interval", 0.1, targets)
    until(lambda: watching.records, "a view of nothing")
    targets.write_text(json.dumps([{"targets": [server.metrics_url.split("/")[2]]}]))
    until(lambda: watching.records[-1]["servers"], "the server")
    targets.write_text("[{]")
    until(lambda: watching.records[-1]["note"], "a note")
    assert "is not JSON" in watching.records[-1]["note"]
    assert len(watching.records[-1]["servers"]) == 1
    watching.send(signal.SIGTERM)
    watching.wait()


def test_a_reader_that_leaves_ends_it(run: Processes) -> None:
    server = run.server()
    watching = start_top(run, "--json", "--interval", 0.1, server.metrics_url)
    until(lambda: watching.records, "a view")
    assert watching.process.stdout is not None
    head = subprocess.run(
        f"{sys.executable} -m offramp.cli.app top --json --interval 0.1 {server.metrics_url} | head -n 1",
        shell=True, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(head.stdout)["failed"] == []
    assert head.stderr == "offramp: stdout: Broken pipe; stopped\n"
    watching.send(signal.SIGTERM)
    watching.wait()


# --- pages that mean harm ---

Handler = Callable[[socket.socket, Peer], None]
GOOD = 'offramp_server_frames_total{result="answered"} 3\n'


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n") -> Handler:
    def handle(connection: socket.socket, _: Peer) -> None:
        connection.recv(1 << 16)
        connection.sendall(head + body)

    return handle


def drip(text: bytes) -> Handler:
    """The head, or a page, that never ends."""

    def handle(connection: socket.socket, _: Peer) -> None:
        connection.recv(1 << 16)
        for byte in text * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    return handle


def hang(connection: socket.socket, _: Peer) -> None:
    while connection.recv(1 << 16):
        pass


HARM = {
    "hangs": (hang, "no page within 1 s"),
    "drips its head": (drip(b"HTTP/1.1 200 OK\r\nX-Header: value"), "no page within 1 s"),
    "drips its page": (drip(b"HTTP/1.1 200 OK\r\n\r\n# a comment\n"), "no page within 1 s"),
    "hangs up": (answer(b"", b""), "Server disconnected without sending a response."),
    "speaks no HTTP": (answer(b"", b"\x00\xff" * 50 + b"\r\n\r\n"), "illegal status line"),
    "refuses": (answer(b"", b"HTTP/1.1 500 No\r\n\r\n"), "answers with status 500, expected 200"),
    "redirects": (
        answer(b"", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n"),
        "answers with status 302, expected 200",
    ),
    "is too long": (answer(b"# x\n" * (1 << 19)), "sends more than 1,048,576 bytes"),
    "is binary": (answer(b"\xff\xfe" * 500), "is not a metrics page (not UTF-8)"),
    "is a web page": (answer(b"<html>" * 20), "is not a metrics page (ValueError)"),
    "is somebody else's": (answer(b"up 1\n"), "is not a metrics page of Offramp"),
    "is empty": (answer(b""), "is not a metrics page of Offramp"),
    "has broken labels": (answer(b'offramp_server_frames_total{result="a 3\n'), "is not a metrics page"),
    "is compressed": (
        answer(b"\x1f\x8b" + bytes(99), b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"),
        "is not a metrics page (not UTF-8)",
    ),
}


def test_what_is_no_page_is_one_line_and_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as peers:
        bad = {harm: peers.enter_context(tcp_peer(handle)).port for harm, (handle, _) in HARM.items()}
        good = peers.enter_context(tcp_peer(answer(GOOD.encode()))).port
        targets = [f"127.0.0.1:{port}" for port in (*bad.values(), good)]
        status, record = once(capsys, *targets, "--timeout", 1)
    assert status == 3
    failed = {each["target"]: each["error"] for each in record["failed"]}
    for harm, (_, error) in HARM.items():
        message = failed.pop(f"127.0.0.1:{bad[harm]}")
        assert error in message and "\n" not in message, harm
    assert failed == {}
    assert [row["target"] for row in record["servers"]] == [f"127.0.0.1:{good}"]


def test_figures_that_cannot_be_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    values = ("NaN", "+Inf", "-Inf", "-5", "1e300")
    lines = [f'offramp_server_rejected_total{{reason="r{i}"}} {value}' for i, value in enumerate(values)]
    lines += [f"offramp_server_queue_depth {value}" for value in values]
    page = GOOD + "\n".join(lines) + "\n"
    with tcp_peer(answer(page.encode())) as bad:
        status, record = once(capsys, f"127.0.0.1:{bad.port}")
    assert status == 0
    (row,) = record["servers"]
    assert row["queue"] == 0 and row["rejected"] == {}


def test_names_are_text_and_short(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[red]\x1b[2J" + "x" * 500
    infos = "".join(f'offramp_bundle_info{{name="{name}{i}",digest="{i}"}} 1\n' for i in range(1000))
    infos += "".join(f'offramp_bundle_info{{name="{i}",digest="0"}} 1\n' for i in range(1000))
    with tcp_peer(answer((GOOD + infos).encode())) as bad:
        assert app.main(["top", "--once", "--interval", "0.1", f"127.0.0.1:{bad.port}"]) == 0
        text = capsys.readouterr().out
        _, record = once(capsys, f"127.0.0.1:{bad.port}")
    assert len(text) < 2000
    assert len(record["servers"][0]["bundles"]) == 16


def test_a_name_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    info = 'offramp_bundle_info{name="[red]\x1b[2J",digest="0"} 1\n'
    with tcp_peer(answer((GOOD + info).encode())) as bad:
        assert app.main(["top", "--once", "--interval", "0.1", f"127.0.0.1:{bad.port}"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"[red]\x1b[2J" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: targets"),
        (["nowhere"], "nowhere nowhere: expected HOST:PORT"),
        (["none.json"], "none.json: No such file or directory, expected a file of targets"),
        (["a:1", "--interval", "0"], "argument --interval: '0': expected seconds, 0.1 … 3600"),
        (["a:1", "--timeout", "nan"], "argument --timeout: 'nan': expected seconds"),
    ],
)
def test_wrong_flags_are_an_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    assert app.main(["top", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("offramp: ") and error in errors
