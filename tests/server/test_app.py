"""``cloud-server`` as a process: start, draining, exit statuses."""

from __future__ import annotations

import fcntl
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD, TAIL
from offramp.common.errors import ExitCode
from offramp.common.wire import frame
from offramp.common.wire.frame import FrameWriter
from offramp.server.app import main
from tests.processes import WAIT, Processes, until
from tests.server.client import Ended, Stream, channel_to, good_frames, good_message, still_serves, stream_to
from tests.toy import BundleFolder


def run_server(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [sys.executable, "-m", "offramp.server.app", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT, check=False, stdin=subprocess.DEVNULL
    )


# --- draining ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(run: Processes, toy_bundle: Bundle, number: signal.Signals) -> None:
    server = run.server()
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        stream.send(good_message(toy_bundle, 64))
        stream.replies(64)
        server.send(number)
        asked = stream.receive()
        assert asked is not None and asked.HasField("draining")
        # What is read before the half-close is answered; nobody new is let in.
        writer = FrameWriter()
        writer._next = 65
        stream.send(writer.pack(good_frames(toy_bundle, 64, first=65)))
        with stream_to(server.address, toy_bundle) as late:
            late.send(frame.hello(toy_bundle.digest))
            # gRPC cancels a call on a connection that it had just let in; a device takes both as "not here".
            # One that it let through is asked to leave at once.
            with pytest.raises(Ended, match=r"UNAVAILABLE|CANCELLED|asked to leave"):
                while (message := late.receive()) is not None and not message.HasField("draining"):
                    assert message.HasField("accepted")
                raise Ended("asked to leave", "")
        found = stream.end()
        assert sorted(reply.sequence for reply in found) == list(range(65, 129))
        assert not any(reply.HasField("error") for reply in found)
    assert server.wait() == 0
    assert server.errors.splitlines()[-1].endswith("stopped")


def test_a_device_that_does_not_leave_is_left_after_the_grace(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--grace", 0.5)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        with pytest.raises(Ended):
            while stream.receive():
                pass


def test_signals_may_come_again(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        for _ in range(3):
            server.send(signal.SIGTERM)
        assert stream.receive()
        server.send(signal.SIGINT)
        assert stream.end() == []
    assert server.wait() == 0


def test_draining_under_load_answers_every_frame_that_it_read(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--frames-in-flight", 4096)
    sent, found = [0] * 4, [0] * 4
    drained = threading.Event()

    def device(index: int) -> None:
        with stream_to(server.address, toy_bundle) as stream:
            stream.hello()
            writer = FrameWriter()
            while not drained.is_set():
                stream.send(writer.pack(good_frames(toy_bundle, 8, first=1 + sent[index])))
                sent[index] += 8
                message = stream.receive()
                assert message is not None
                found[index] += len(message.replies)
                if message.HasField("draining"):
                    drained.set()
            found[index] += len(stream.end())

    threads = [threading.Thread(target=device, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: min(found) > 50, "some replies to each")
    assert server.drain() == 0
    for thread in threads:
        thread.join(WAIT)
    assert sent == found


# --- hygiene ---


def test_asyncio_has_nothing_to_complain_of(run: Processes, toy_bundle: Bundle) -> None:
    """Python's development mode shows what was never awaited, retrieved or closed."""
    server = run.server("--hello-timeout", 0.3, "--max-streams", 3, python=["-X", "dev"])
    for _ in range(3):
        still_serves(server.address, toy_bundle)
        with stream_to(server.address, toy_bundle) as stream, pytest.raises(Ended, match="no hello"):
            stream.receive()
        with stream_to(server.address, toy_bundle) as stream:
            stream.send(b"\xff")
            with pytest.raises(Ended, match="INVALID_ARGUMENT"):
                stream.receive()
        with channel_to(server.address) as channel:
            streams = [Stream(channel, toy_bundle) for _ in range(3)]
            for stream in streams:
                stream.hello()
                stream.send(good_message(toy_bundle, 64))
            over = Stream(channel, toy_bundle)
            with pytest.raises(Ended, match="RESOURCE_EXHAUSTED"):
                over.receive()
            streams[0].call.cancel()
            for stream in streams:
                stream.half_close()
            over.half_close()
        until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "no open stream")
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        server.send(signal.SIGTERM)
        assert stream.receive()
        stream.end()
    assert server.wait() == 0
    # Development mode reports a slow machine too; that is not a complaint.
    complaints = [line for line in server.stderr if " cloud-server " not in line or " ERROR " in line]
    assert complaints == []


# --- what stops it ---


def test_a_port_in_use_is_exit_7(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    done = run_server("--bundle", toy_bundle.path, "--listen", server.address)
    assert done.returncode == 7
    assert done.stderr.strip() == (
        f"cloud-server: --listen {server.address}: cannot be bound, expected a free address"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_server("--bundle", toy_bundle.path, "--listen", "127.0.0.1:0", "--metrics-port", port)
    assert done.returncode == 7
    assert f"cloud-server: metrics on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1
    still_serves(server.address, toy_bundle)


def test_an_address_that_is_not_ours_is_exit_7(toy_bundle: Bundle) -> None:
    done = run_server("--bundle", toy_bundle.path, "--listen", "192.0.2.1:0", "--insecure")
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    done = run_server(
        *("--bundle", toy_bundle.path, "--listen", "127.0.0.1:0"),
        *("--metrics-port", "0", "--metrics-host", "192.0.2.1"),
    )
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "manifest", "hash", "tail", "tail's shape"])
def test_a_bundle_that_cannot_be_used_is_exit_4(damaged: BundleFolder, tmp_path: Path, damage: str) -> None:
    path = damaged.path
    if damage == "missing":
        path = tmp_path / "nowhere"
    elif damage == "empty":
        path = tmp_path / "empty"
        path.mkdir()
    elif damage == "manifest":
        damaged.edit("extra", value=1)
    elif damage == "hash":
        (path / TAIL).write_bytes(bytes((path / TAIL).stat().st_size))
    elif damage == "tail":
        damaged.put(TAIL, b"no graph")
    else:
        damaged.put(TAIL, (path / HEAD).read_bytes())
    done = run_server("--bundle", path, "--listen", "127.0.0.1:0")
    assert done.returncode == 4
    assert done.stderr.startswith(f"cloud-server: {path}: ") or done.stderr.startswith(
        "cloud-server: tail.onnx"
    )
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "nowhere"], "--listen nowhere: expected HOST:PORT"),
        (["--listen", "::1:0"], "expected an IPv6 address in brackets"),
        (["--listen", "dns:///host:50051"], "expected HOST:PORT alone, without a scheme or a path"),
        (["--max-batch", "0"], "--max-batch 0: "),
        (["--queue", "many"], "--queue many: "),
        (["--hello-timeout", "nan"], "--hello-timeout nan: "),
        (["--grace", "inf"], "--grace inf: "),
        (["--frames-in-flight", "-1"], "--frames-in-flight -1: "),
        (["--metrics-port", "65536"], "--metrics-port 65536: "),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_flags_are_one_line(
    toy_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--bundle", str(toy_bundle.path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:0"], "--listen 0.0.0.0: the connection would be plaintext"),
        (["--providers", "cuda"], "--providers cuda: this ONNX Runtime has only cpu"),
        ([], "the following arguments are required: --bundle"),
    ],
)
def test_what_cannot_be_begun_is_exit_2(toy_bundle: Bundle, arguments: list[str], message: str) -> None:
    bundle = ["--bundle", str(toy_bundle.path)] if arguments else []
    done = run_server(*bundle, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_provider_that_is_not_there_is_one_warning_and_a_metric(
    run: Processes, toy_bundle: Bundle, picture_bundle: Bundle
) -> None:
    server = run.server("--providers", "tensorrt,cuda,cpu", "--pictures", picture_bundle.path)
    still_serves(server.address, toy_bundle)
    warnings = [line for line in server.stderr if "WARNING" in line]
    assert len(warnings) == 3  # a tail each, and the head that answers pictures
    assert all(re.search(r"\.onnx: no tensorrt: .*; no cuda: .*; runs on cpu$", line) for line in warnings)
    # Both bundles have the same name.
    page = server.metrics()
    assert {key for key in page if key.startswith("offramp_server_provider_info")} == {
        f"offramp_server_provider_info{{asked=tensorrt,cuda,cpu,name=toy,part={part},provider=cpu}}"
        for part in ("head", "tail")
    }
    assert page["offramp_server_provider_operators_ratio{name=toy,part=tail,provider=cpu}"] == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from offramp.server.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'grpc', 'onnx'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "exit status:" in done.stdout


def test_a_server_serves_without_metrics(run: Processes, toy_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(toy_bundle.path)]
    server = run.start([*command, "--listen", "[::1]:0" if socket.has_ipv6 else "127.0.0.1:0"])
    try:
        match = server.wait_for(r"listening on (\S+)$")
    except AssertionError:
        pytest.skip("this machine has no IPv6 loopback")
    # What is printed is what flags take.
    assert match[1].startswith("[::1]:" if socket.has_ipv6 else "127.0.0.1:")
    still_serves(match[1], toy_bundle)
    server.send(signal.SIGTERM)
    assert server.wait() == 0


# --- its own output ---


def test_a_log_that_nobody_reads_keeps_no_device_waiting(toy_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(toy_bundle.path)]
    command += ["--listen", "127.0.0.1:0", "--metrics-port", "0", "--log-level", "debug"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    try:
        assert server.stderr is not None
        fcntl.fcntl(server.stderr.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        found = (re.search(r"listening on (\S+:\d+)", line) for line in server.stderr)
        address = next(match[1] for match in found if match is not None)
        # Each of these is worth a line; together they are far more than the pipe takes.
        for _ in range(150):
            with stream_to(address, toy_bundle) as stream:
                stream.send(b"\xff")
                with pytest.raises(Ended, match="INVALID_ARGUMENT"):
                    stream.receive()
        still_serves(address, toy_bundle)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_that_cannot_be_written_says_so(flag: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "offramp.server.app", flag],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=WAIT, check=False,
        )  # fmt: skip
    assert ended.returncode == ExitCode.INTERRUPTED
    assert ended.stderr == "cloud-server: stdout: No space left on device; stopped\n"
