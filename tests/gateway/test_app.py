"""``offramp gateway`` as a program: all doors at once, a real server behind, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from offramp.common.wire.borders import CobsReader, LengthReader, to_cobs, with_length
from offramp.common.wire.datagram import Datagrams, Reply, ReplyError
from offramp.common.wire.seal import DeviceKey
from offramp.gateway.app import main
from offramp.link.mqtt import Broker, Connection
from offramp.link.security import Security
from tests.mosquitto import Mosquitto, needs_mosquitto
from tests.processes import Processes, Program, closed_port, processes, scrape, until

KEY = "07" * 16


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    with processes(toy_bundle.path) as started:
        yield started


def gateway(run: Processes, *flags: object, **popen: object) -> tuple[Program, str]:
    """A gateway that takes datagrams, and its metrics page."""
    command = [sys.executable, "-m", "offramp.cli.app", "gateway", "--bundle", str(run.bundle)]
    program = run.start([*command, "--metrics-port", "0", *map(str, flags)], **popen)
    page = program.wait_for(r"taking datagrams.*, metrics on (\S+)")[1]
    return program, f"http://{page}/metrics"


def payload_of(bundle: Bundle) -> tuple[int, bytes]:
    import numpy as np

    codec, payload = bundle.codec.encode(np.zeros(bundle.codec.shape, np.uint8))
    return int(codec), payload


def test_devices_by_udp_a_serial_line_and_a_pipe(
    run: Processes, toy_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    server = run.server()
    ours, theirs = os.openpty()
    devices = tmp_path / "devices.toml"
    devices.write_text(f'[hive-3]\nnumber = 513\nkey = "{KEY}"\n[pipe]\nnumber = 2\nkey = "{KEY[:-1]}8"\n')
    (tmp_path / "key").write_text(KEY)
    command = [sys.executable, "-m", "offramp.cli.app", "gateway", "--bundle", str(run.bundle)]
    flags = ("--server", f"127.0.0.1:{server.port}", "--udp", "127.0.0.1:0", "--serial", os.ttyname(theirs))
    more = ("--devices", devices, "--state", tmp_path / "windows.db", "--stdio", "--metrics-port", "0")
    with subprocess.Popen(
        [*command, *flags, *map(str, more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=False,
        bufsize=0,
    ) as program:
        assert program.stdin and program.stdout and program.stderr
        try:
            line = b""
            while b"taking datagrams" not in line:
                line = program.stderr.readline()
                assert line, "the gateway ended"
            words = line.decode().split()
            udp, page = words[words.index("port") + 1].rstrip(","), words[-1]
            identity = ("--key-file", tmp_path / "key", "--device-number", 513)
            status, device = run.device(
                *("--server", f"udp://127.0.0.1:{udp}", "--threshold", 1, "--packet-bytes", 60, "--json"),
                *(*identity, "--sequence-file", tmp_path / "numbers", toy_images),
            )
            assert status == ExitCode.OK and {each["source"] for each in device.answers} == {"server"}
            datagrams = Datagrams(toy_bundle.digest, len(toy_bundle.manifest.classes))
            codec, payload = payload_of(toy_bundle)
            request = datagrams.request(5, codec, payload, 2, DeviceKey(bytes([7] * 15 + [0x08])))
            os.write(ours, to_cobs(request))
            found, cobs = list[bytes](), CobsReader()
            while not found:
                found = cobs.feed(os.read(ours, 100))
            # The same bytes by another door: the same reply, and no second request.
            program.stdin.write(with_length(b"\2ab" + request))
            again, lengths = list[bytes](), LengthReader()
            while not again:
                again = lengths.feed(os.read(program.stdout.fileno(), 100))
            assert again == [b"\2ab" + found[0]]
            counts = scrape(f"http://{page}/metrics")
            assert counts["offramp_gateway_answers_total{device=hive-3}"] == len(device.answers) == 40
            assert counts["offramp_gateway_answers_total{device=pipe}"] == 1
            assert counts["offramp_gateway_doubled_total{device=pipe}"] == 1
            program.stdin.close()  # the end of standard input is the end
            assert program.wait(60) == ExitCode.OK
            assert b"Traceback" not in program.stderr.read()
        finally:
            program.kill()
            os.close(ours)
            os.close(theirs)


@needs_mosquitto
def test_a_device_by_a_broker(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    server, broker = run.server(), Mosquitto(tmp_path)
    try:
        program, page = gateway(run, "--server", f"127.0.0.1:{server.port}", "--mqtt", broker.url)
        flags = ("--server", broker.url, "--mqtt-name", "hive-3", "--threshold", 1, "--json")
        assert _is_online(broker)
        status, device = run.device(*flags, toy_images)
        assert status == ExitCode.OK and {each["source"] for each in device.answers} == {"server"}
        assert scrape(page)["offramp_gateway_answers_total{device=unlisted}"] == len(device.answers)
        program.send(signal.SIGTERM)
        assert program.wait() == ExitCode.OK
    finally:
        broker.kill()
    status, device = run.device(*flags, toy_images)
    assert status == ExitCode.UNAVAILABLE and {each["source"] for each in device.answers} == {"fallback"}


def _is_online(broker: Mosquitto) -> bool:
    """Whether a gateway has said so."""
    found: list[object] = []
    target = Broker.parse("--mqtt", broker.url, Security())
    connection = Connection(target, "probe", ["offramp/+/state"], found.append, "probe", retained=True)
    connection.start()
    until(connection.ready.is_set, "the broker")
    until(lambda: found, "a state")
    connection.close()
    return bool(found)


def test_requests_wait_for_a_server(run: Processes, toy_bundle: Bundle) -> None:
    """No longer than ``--hold``: then their devices are sent an error."""
    import socket

    with closed_port() as port:
        program, page = gateway(run, "--server", f"127.0.0.1:{port}", "--udp", "127.0.0.1:0", "--hold", 1)
        door = int(program.wait_for(r"UDP port (\d+)")[1])
        datagrams = Datagrams(toy_bundle.digest, len(toy_bundle.manifest.classes))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.sendto(datagrams.request(1, *payload_of(toy_bundle)), ("127.0.0.1", door))
            until(lambda: scrape(page)["offramp_gateway_waiting"] == 1, "the request")
            assert datagrams.read_reply(client.recv(100)) == Reply(1, error=ReplyError.UNAVAILABLE)
        program.send(signal.SIGTERM)
        assert program.wait() == ExitCode.OK


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--udp, --serial, --stdio or --mqtt: expected at least one"),
        ("--udp 0.0.0.0:0", "anybody could ask there; say --devices with keys, or --insecure"),
        ("--udp 127.0.0.1", "expected HOST:PORT"),
        ("--stdio --devices x", "expected --state with it"),
        ("--stdio --state x", "expected --devices with it"),
        ("--stdio --devices /none --state x", "--devices /none"),
        ("--stdio --server a.b:1", "would be plaintext"),
        ("--mqtt mqtt://a.b", "would be plaintext"),
        ("--mqtt mqtts://127.0.0.1 --mqtt-tls-cert x", "--mqtt-tls-cert and --mqtt-tls-key: expected both"),
        ("--mqtt mqtt://127.0.0.1 --mqtt-name a/b", "--mqtt-name a/b"),
        ("--mqtt mqtt://u:p@127.0.0.1", "--mqtt-user-file"),
        ("--serial /none", "--serial /none: cannot be used"),
    ],
)
def test_flags_that_cannot_work(
    toy_bundle: Bundle, capfd: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    if "mqtt" in flags:
        pytest.importorskip("paho.mqtt.client")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = main(["--bundle", str(toy_bundle.path), *flags.split()])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert status == ExitCode.CONFIG and words in error and error.startswith("offramp gateway: ")
