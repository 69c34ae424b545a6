"""``edge-device`` as a process: what it prints, and what its exit status tells."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD
from offramp.common.errors import MismatchError, OfframpError, PeerError, UnavailableError
from offramp.common.inputs.headers import EXTENSIONS_OF
from offramp.device.app import exit_code, main
from tests import toy
from tests.device import hostile
from tests.processes import Processes, closed_port, processes, scrape, until
from tests.toy import BundleFolder

FIELDS = {
    "index",
    "image",
    "label",
    "class_index",
    "confidence",
    "source",
    "latency_seconds",
    "decode_seconds",
    "payload_bytes",
    "message_bytes",
    "wire_bytes",
}


def test_json_has_one_record_for_each_image_and_the_summary_last(
    run: Processes, toy_images: Path, toy_bundle: Bundle
) -> None:
    server = run.server()
    status, device = run.device("--server", server.address, "--threshold", 0.7, "--json", toy_images)
    assert (status, device.errors) == (0, "")
    *answers, last = device.records
    assert sorted(Path(answer["image"]).name for answer in answers) == [f"{n:02}.png" for n in range(40)]
    assert sorted(answer["index"] for answer in answers) == list(range(40))
    for answer in answers:
        assert answer.keys() == FIELDS
        assert Path(answer["image"]) == toy_images / f"{answer['index']:02}.png"
        assert answer["label"] == toy.CLASSES[answer["class_index"]]
        assert 0 < answer["confidence"] <= 1 and answer["latency_seconds"] > 0
        assert answer["decode_seconds"] > 0
        assert (answer["source"] == "early_exit") == (answer["payload_bytes"] == 0)
        assert (answer["source"] == "early_exit") == (answer["confidence"] > 0.7) or (
            answer["source"] == "server"
        )
    assert list(last) == ["summary"]
    summary = device.summary
    assert (summary["images"], summary["unreadable"], summary["fallback"]) == (40, 0, 0)
    assert 0 < summary["early_exit"] < 40
    assert summary["exit_rate"] == summary["early_exit"] / 40
    assert summary["payload_bytes_mean"] == summary["payload_bytes"] / 40
    assert summary["raw_activation_bytes"] == summary["server"] * toy_bundle.codec.raw_bytes


def test_the_table_and_quiet(run: Processes, toy_images: Path) -> None:
    status, device = run.device("--threshold", 0, toy_images)
    assert (status, device.errors) == (0, "")
    assert device.stdout[0].split()[:3] == ["#", "label", "conf."]
    rows = device.stdout[1:41]
    assert [row.split()[0] for row in rows] == [str(index) for index in range(40)]
    assert device.stdout[42].startswith("40 images at T_c = 0: 40 early exit, 0 server, 0 fallback")
    status, device = run.device("--threshold", 0, "--quiet", toy_images)
    assert status == 0 and device.stdout[1].startswith("40 images") and len(device.stdout) == 5


# --- exit statuses ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1.01"], "--threshold 1.01: "),
        (["--threshold", "-0.1"], "--threshold -0.1: "),
        (["--threshold", "nan"], "--threshold nan: "),
        (["--threshold", "inf"], "--threshold inf: "),
        (["--threshold", "high"], "--threshold high: "),
        (["--timeout", "0"], "--timeout 0: "),
        (["--timeout", "nan"], "--timeout nan: "),
        (["--window", "0"], "--window 0: "),
        (["--rate", "0"], "--rate 0: "),
        (["--rate", "inf"], "--rate inf: "),
        (["--server", "nowhere"], "--server nowhere: expected HOST:PORT"),
        (["--server", "127.0.0.1:1,:5"], "--server :5: expected HOST:PORT"),
        (["--metrics-port", "-1"], "--metrics-port -1: "),
        (["--providers", "tpu"], "--providers tpu: "),
        (["--providers", "cpu,cuda"], "cpu: runs every operator, expected it last"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_wrong_flags_are_one_line(
    toy_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--bundle", str(toy_bundle.path), *arguments, "no/such/folder"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("edge-device: ") and message in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "192.0.2.1:1"], "--server 192.0.2.1: the connection would be plaintext"),
        (["--providers", "cuda"], "--providers cuda: this ONNX Runtime has only cpu"),
        (["no/such/folder"], "no/such/folder: No such file or directory, expected a file or a folder"),
    ],
)
def test_what_cannot_be_begun_is_exit_2(
    run: Processes, toy_images: Path, arguments: list[str], message: str
) -> None:
    status, device = run.device(*arguments, toy_images)
    assert status == 2 and device.stdout == []
    (line,) = device.stderr
    assert line.startswith("edge-device: ") and message in line


def test_no_images_is_exit_2_and_an_empty_folder_is_not(run: Processes, tmp_path: Path) -> None:
    status, device = run.device()
    assert status == 2 and "required: images" in device.errors
    status, device = run.device("--json", tmp_path)
    assert (status, device.errors) == (0, "") and device.summary["images"] == 0


def test_an_unreachable_server_is_exit_3_and_is_said_once(run: Processes, toy_images: Path) -> None:
    with closed_port() as port:
        status, device = run.device(
            "--server", f"127.0.0.1:{port}", "--threshold", 1, "--rate", 50, "--json", toy_images
        )
    assert status == 3
    assert device.summary["fallback"] == 40 and device.summary["payload_bytes"] == 0
    assert all("is unreachable" in answer["reason"] for answer in device.answers)
    (line,) = device.stderr
    assert f"127.0.0.1:{port} is unreachable" in line


@pytest.mark.parametrize("name", ["no.such.host.invalid:5", "%:5", "a b:5", "ⅷ:5"])
def test_a_host_that_no_one_knows_is_exit_3(run: Processes, toy_images: Path, name: str) -> None:
    status, device = run.device(
        *("--server", name, "--insecure", "--timeout", 1, "--threshold", 1, "--json"), toy_images / "00.png"
    )
    assert status == 3 and device.summary["fallback"] == 1
    (line,) = device.stderr
    assert " WARNING " in line


@pytest.mark.parametrize("damage", ["missing", "manifest", "head"])
def test_an_unusable_bundle_is_exit_4(
    run: Processes, damaged: BundleFolder, tmp_path: Path, toy_images: Path, damage: str
) -> None:
    path = damaged.path
    if damage == "missing":
        path = tmp_path / "nowhere"
    elif damage == "manifest":
        damaged.write_manifest(b"{")
    else:
        damaged.put(HEAD, b"no graph")
    status, device = run.device(toy_images, bundle=path)
    assert status == 4 and device.stdout == []
    (line,) = device.stderr
    assert line.startswith("edge-device: ")


def test_unreadable_images_are_exit_5_and_the_others_are_answered(
    run: Processes, toy_images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = (toy_images / "00.png").read_bytes()
    attacks = Path(__file__).parents[1] / "attacks" / "images"
    hostile_names = sorted(path.name for path in attacks.iterdir() if path.suffix in (".png", ".jpg"))
    assert hostile_names
    for name in hostile_names:
        (folder / name).write_bytes((attacks / name).read_bytes())
        (folder / f"{name}-then-good.png").write_bytes(good)
    os.mkfifo(folder / "pipe.png")
    (folder / "z-last.png").write_bytes(good)
    status, device = run.device("--threshold", 0, "--json", folder)
    assert status == 5
    bad = [record for record in device.records if "error" in record]
    assert sorted(Path(record["image"]).name for record in bad) == sorted([*hostile_names, "pipe.png"])
    for record, line in zip(bad, device.stderr, strict=True):
        assert record["image"] in record["error"]
        assert line.startswith("edge-device: ") and Path(record["image"]).name in line
    assert len(device.answers) == len(hostile_names) + 1
    assert device.summary["images"] == len(hostile_names) + 1
    assert device.summary["unreadable"] == len(bad)
    assert sorted(record["index"] for record in bad + device.answers) == list(
        range(2 * len(hostile_names) + 2)
    )


def test_another_bundle_on_the_server_is_exit_6_and_names_both(
    run: Processes, toy_bundle: Bundle, raw_bundle: Bundle, toy_images: Path
) -> None:
    server = run.server(bundle=raw_bundle.path)
    status, device = run.device("--server", server.address, "--threshold", 1, "--json", toy_images)
    assert status == 6
    assert device.summary["fallback"] == 40
    (line,) = device.stderr
    assert toy_bundle.digest.hex() in line and raw_bundle.digest.hex() in line


def test_a_server_that_breaks_the_protocol_is_exit_6(run: Processes, toy_images: Path) -> None:
    with hostile.hostile(hostile.answering(hostile.reply(1, class_index=3))) as server:
        address = f"127.0.0.1:{server.port}"
        status, device = run.device("--server", address, "--threshold", 1, "--json", toy_images)
    assert status == 6 and "answered class 3" in device.errors
    assert sorted(answer["index"] for answer in device.answers) == list(range(40))


def test_a_metrics_port_in_use_is_exit_7(run: Processes, toy_images: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, device = run.device("--threshold", 0, "--metrics-port", port, toy_images)
    assert (status, device.stdout) == (7, [])
    assert device.errors == (
        f"edge-device: metrics on 127.0.0.1:{port}: Address already in use, expected a free port"
    )


# --- signals and stdout ---


@pytest.mark.parametrize(("number", "rate"), [(signal.SIGINT, 20.0), (signal.SIGTERM, 1e-300)])
def test_an_interrupted_run_prints_its_summary(
    run: Processes, toy_npz: Path, number: signal.Signals, rate: float
) -> None:
    server = run.server()
    device = run.start_device("--server", server.address, "--threshold", 1, "--rate", rate, "--json", toy_npz)
    until(lambda: device.answers, "an answer")
    device.send(number)
    assert device.wait() == 130 and device.errors == ""
    assert device.summary["images"] == len(device.answers) < 300


def test_an_interrupted_wait_for_a_server_ends(run: Processes, toy_npz: Path) -> None:
    with hostile.hostile(hostile.first_messages(hostile.accepted())) as server:
        device = run.start_device(
            *("--server", f"127.0.0.1:{server.port}", "--threshold", 1, "--timeout", 1, "--json"),
            *("--rate", 100, toy_npz),
        )
        until(lambda: device.answers, "a fallback")
        device.send(signal.SIGINT)
        assert device.wait() == 130
    assert device.summary["fallback"] == len(device.answers)


def test_holding_serves_metrics_until_a_signal(run: Processes, toy_images: Path) -> None:
    device = run.start_device("--threshold", 0, "--metrics-port", 0, "--hold", "--json", toy_images)
    url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
    until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
    page = scrape(url)
    assert page["offramp_device_images_total{source=early_exit}"] == 40
    assert page["offramp_device_wire_bytes_total{direction=sent}"] == 0
    assert page["offramp_device_connected"] == 0
    device.send(signal.SIGTERM)
    assert device.wait() == 0


def test_a_provider_that_is_not_there_is_one_warning_and_a_metric(run: Processes, toy_images: Path) -> None:
    device = run.start_device(
        *("--threshold", 0, "--metrics-port", 0, "--hold", "--json", "--providers", "cuda:device_id=1,cpu"),
        toy_images,
    )
    url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
    until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
    (warning,) = [line for line in device.stderr if "WARNING" in line]
    assert "head.onnx: no cuda: this ONNX Runtime has only cpu" in warning
    page = scrape(url)
    assert page["offramp_device_provider_info{asked=cuda,cpu,part=head,provider=cpu}"] == 1
    assert page["offramp_device_provider_operators_ratio{part=head,provider=cpu}"] == 1
    device.send(signal.SIGTERM)
    assert device.wait() == 0
    assert device.summary["early_exit"] == 40


def test_what_jpeg_would_cost_is_counted(run: Processes, toy_images: Path) -> None:
    device = run.start_device(
        *("--threshold", 0, "--metrics-port", 0, "--hold", "--json", "--compare-jpeg", 50, toy_images)
    )
    url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
    until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
    page = scrape(url)
    expected = 0
    for path in toy_images.glob("*.png"):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "JPEG", quality=50, optimize=True)
        expected += len(buffer.getvalue())
    assert page["offramp_device_jpeg_bytes_total"] == expected > 0
    assert page["offramp_device_raw_size_bytes{of=pixels}"] == 3 * toy.SIDE**2
    device.send(signal.SIGTERM)
    assert device.wait() == 0


def test_metrics_are_there_while_it_runs(run: Processes, toy_npz: Path) -> None:
    server = run.server()
    device = run.start_device(
        *("--server", server.address, "--threshold", 1, "--rate", 50, "--json", "--metrics-port", 0, toy_npz)
    )
    url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
    until(lambda: scrape(url)["offramp_device_connected"] == 1, "the stream")
    before = scrape(url)["offramp_device_wire_bytes_total{direction=sent}"]
    until(lambda: scrape(url)["offramp_device_wire_bytes_total{direction=sent}"] > before, "more bytes")
    device.send(signal.SIGINT)
    assert device.wait() == 130


def test_a_reader_of_stdout_that_goes_away_ends_the_run(run: Processes, toy_npz: Path) -> None:
    reading, writing = os.pipe()
    device = run.start_device("--threshold", 0, "--rate", 100, "--json", toy_npz, stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as results:
        assert results.readline().startswith('{"index": 0')
    assert device.wait() == 130
    assert device.errors == "edge-device: stdout: Broken pipe; stopped"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_the_run(run: Processes, toy_images: Path) -> None:
    with Path("/dev/full").open("w") as full:
        status, device = run.device("--threshold", 0, toy_images, stdout=full)
    assert (status, device.errors) == (130, "edge-device: stdout: No space left on device; stopped")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stdout_or_stderr_is_no_bug(toy_bundle: Bundle, toy_images: Path, closed: str) -> None:
    command = f'exec "$0" -m offramp.device.app --bundle "$1" --threshold 0 --json "$2" {closed}>&-'
    arguments = [sys.executable, str(toy_bundle.path), str(toy_images)]
    done = subprocess.run(["sh", "-c", command, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == (41 if closed == "2" else 0)


def test_a_slow_reader_of_stdout_loses_nothing(run: Processes, tmp_path: Path) -> None:
    """More than a pipe holds, read only after the run is well under way."""
    path = tmp_path / "many.npz"
    np.savez_compressed(path, images=toy.images(2000, seed=5).transpose(0, 2, 3, 1))
    reading, writing = os.pipe()
    device = run.start_device("--threshold", 0, "--json", "--metrics-port", 0, path, stdout=writing)
    os.close(writing)
    url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
    until(lambda: scrape(url)["offramp_device_images_total{source=early_exit}"] == 2000, "all images")
    with os.fdopen(reading) as results:
        lines = results.readlines()
    assert device.wait() == 0 and len(lines) == 2001


def test_names_that_are_no_text_are_printed(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    good = (toy_images / "00.png").read_bytes()
    for name in (b"\xff\xfe.png", "\u202e×.png".encode(), b"a\nb\x1b[31m.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:  # noqa: PTH123
            file.write(good)
    environment: dict[str, Any] = {"env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    status, device = run.device("--threshold", 0, tmp_path, **environment)
    assert (status, device.errors) == (0, "")
    rows = device.stdout[1:4]
    assert [row.isprintable() and row.isascii() for row in rows] == [True] * 3
    status, device = run.device("--threshold", 0, "--json", tmp_path)
    assert status == 0 and len(device.answers) == 3


# --- start ---


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from offramp.device.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'grpc', 'onnx', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("examples:", "exit status: 0", "--threshold T", "--server HOST:PORT"):
        assert text in done.stdout


def test_help_names_every_format_that_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.lower()
    assert [kind for kind in EXTENSIONS_OF if kind.lower() not in text] == []


def test_the_version_is_told() -> None:
    command = [sys.executable, "-m", "offramp.device.app", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("edge-device 0.")


def test_development_mode_has_nothing_to_complain_of(toy_bundle: Bundle, toy_images: Path) -> None:
    with processes(toy_bundle.path) as run:
        server = run.server()
        command = [sys.executable, "-X", "dev", "-m", "offramp.device.app", "--bundle", str(toy_bundle.path)]
        command += ["--server", server.address, "--threshold", "0.7", "--quiet", str(toy_images)]
        device = run.start(command)
        assert device.wait() == 0
    assert device.errors == ""


@pytest.mark.parametrize(
    ("fallbacks", "unreadable", "failure", "expected"),
    [
        (0, 0, None, 0),
        (0, 0, UnavailableError("it came back"), 0),
        (0, 1, None, 5),
        (1, 0, None, 3),
        (1, 1, UnavailableError("gone"), 3),
        (1, 0, MismatchError("other bundle"), 6),
        (1, 0, PeerError("nonsense"), 6),
    ],
)
def test_the_exit_status_is_that_of_the_worst(
    fallbacks: int, unreadable: int, failure: OfframpError | None, expected: int
) -> None:
    assert exit_code(fallbacks, unreadable, failure) == expected


def test_the_device_needs_no_torch(toy_bundle: Bundle, toy_images: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'sklearn', 'onnxscript']));"
        "from offramp.device.app import main;"
        f"sys.exit(main(['--bundle', {str(toy_bundle.path)!r}, '--threshold', '0', {str(toy_images)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- no answer depends on stderr, and nobody who reads stdout is needed to end a run ---


def command(bundle: Bundle, *arguments: object) -> list[str]:
    program = [sys.executable, "-m", "offramp.device.app", "--bundle", str(bundle.path), "--threshold", "0"]
    return [*program, *map(str, arguments)]


@pytest.mark.parametrize("broken", ["full", "dead", "stuck"])
def test_a_stderr_that_takes_nothing_costs_no_answer(
    toy_bundle: Bundle, toy_images: Path, tmp_path: Path, broken: str
) -> None:
    """A full log disk, a log pipe whose reader is gone, one whose reader does not read."""
    for number in range(50):
        (tmp_path / f"{number:02}.png").write_bytes(b"no picture")
    reading, writing = os.pipe()
    if broken == "dead":
        os.close(reading)
    elif broken == "stuck":
        os.set_blocking(writing, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
    elif not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    stderr = os.open("/dev/full", os.O_WRONLY) if broken == "full" else writing
    done = subprocess.run(
        command(toy_bundle, "--json", tmp_path, toy_images),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
        timeout=60,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 5
    assert (records[-1]["summary"]["images"], records[-1]["summary"]["unreadable"]) == (40, 50)
    assert len(records) == 91


@pytest.mark.parametrize("flags", [["--repeat"], []], ids=["repeat", "once"])
def test_a_signal_ends_a_run_whose_stdout_nobody_reads(
    run: Processes, toy_npz: Path, toy_images: Path, flags: list[str]
) -> None:
    reading, writing = os.pipe()
    device = run.start_device(
        *("--threshold", 0, "--json", "--metrics-port", 0, *flags, *[toy_npz, toy_images] * 12),
        stdout=writing,
    )
    os.close(writing)
    device.wait_for("metrics on")
    until(lambda: _is_full(reading), "a pipe that takes no more")
    device.send(signal.SIGTERM)
    status = device.process.wait(30)
    os.close(reading)
    assert status == 130


def test_what_waits_for_a_reader_of_stdout_is_bounded(toy_bundle: Bundle, toy_images: Path) -> None:
    """Images are not read on and on while nobody takes their answers."""
    code = (
        "import sys; from offramp.device import app, printer; printer.PENDING = 300;"
        "from offramp.device.sources import source; read = source.Source._read; count = [0];\n"
        "def counted(*arguments):\n"
        "    count[0] += 1\n"
        "    print(count[0], file=sys.stderr)\n"
        "    yield from read(*arguments)\n"
        "source.Source._read = counted; sys.exit(app.main(sys.argv[1:]))"
    )
    reading, writing = os.pipe()
    arguments = command(toy_bundle, "--json", "--repeat", toy_images)[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert process.stderr is not None
    try:
        first = [int(process.stderr.readline()) for _ in range(300)]
        assert first[-1] == 300
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(reading)
    # A pipe holds some 300 records.
    assert process.returncode == 130
    assert max(map(int, (line for line in rest.splitlines() if line.isdigit())), default=300) < 2000


def _is_full(pipe: int) -> bool:
    """Whether nothing was added for a second. How much a pipe takes differs from system to system."""
    held = _held(pipe)
    for _ in range(10):
        time.sleep(0.1)
        if _held(pipe) != held:
            return False
    return held > 1000


def _held(pipe: int) -> int:
    """Bytes that wait in a pipe."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
