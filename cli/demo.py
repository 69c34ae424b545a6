"""``offramp demo``: a real server, a real device, real images, and the bytes beside the alternatives.

Every figure is measured as it runs: the answers come from ``edge-device`` processes, the bytes from their
own counters, and the picture baselines from encoding the same images and giving them to the whole model.
"""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from offramp.bench.baselines import head_answers, whole_answers
from offramp.common import cpus
from offramp.common.arguments import Parser, fraction
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, DataError, OfframpError, UnavailableError
from offramp.common.inputs.pictures import to_input
from offramp.common.part.engine import Engine

EPILOG = """\
examples:
  offramp demo                                   # in a checkout: the shipped bundle and digits
  offramp demo --bundle DIR --images DIR --json  # DIR has pictures and labels.csv (columns file,label)
  offramp demo --bundle CODE --whole PLAIN --images DIR
  offramp demo --bundle CODE --whole PLAIN --images DIR --threshold 0.93 --picture-threshold 0.5
"""
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
START_SECONDS = 30.0


Way = Callable[[Image.Image], tuple[int, Image.Image]]
"""A picture to its size in bytes and what the server sees of it."""


@dataclass(frozen=True)
class Row:
    """One way to have the images classified."""

    name: str
    accuracy: float
    exit_rate: float | None
    payload_bytes_mean: float
    wire_bytes_mean: float | None
    """Both directions, TCP payload, over all images; None where nothing was sent over a socket."""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises OfframpError where a step fails."""
    parser = Parser(
        "offramp demo",
        description="Start cloud-server and edge-device on one bundle, sweep T_c, compare the bytes.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument(
        "--whole",
        type=Path,
        metavar="DIR",
        help="bundle whose head and tail are the whole model that pictures are sent to; default: --bundle",
    )
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument(
        "--threshold", metavar="T", action="append", default=[], type=fraction, help="another T_c to run at"
    )
    parser.add_argument(
        "--picture-threshold",
        metavar="T",
        type=fraction,
        help="also run with pictures of those that the server's answer leaves unsure, sent to --whole",
    )
    parser.add_argument("--picture-quality", metavar="QUALITY", default="20", help="WebP's (default: 20)")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    bundle = load_bundle(arguments.bundle)
    # A narrow code is trained for its own bytes; pictures deserve a model without one.
    whole = load_bundle(arguments.whole or arguments.bundle)
    if whole.manifest.classes != bundle.manifest.classes:
        raise ConfigError(f"{whole.path}: has other classes than {arguments.bundle}")
    labels = read_labels(arguments.images, bundle.manifest.classes)

    def say(text: str = "") -> None:
        if not arguments.json:
            print(text, flush=True)

    # What the server needs for pictures, and a device that sends them.
    serving: list[str] = []
    device: list[str] = []
    if arguments.picture_threshold is not None:
        serving = ["--pictures", str(whole.path)]
        device = ["--picture-threshold", str(arguments.picture_threshold)]
        device += ["--picture-quality", arguments.picture_quality]
    with running_server(arguments.bundle, *serving) as server:
        say(f"cloud-server on {server.address}, {bundle.manifest.name}; {len(labels)} images")
        at = sorted({*THRESHOLDS, *arguments.threshold, bundle.manifest.threshold})

        def sweep(*flags: str) -> list[Row]:
            """A row for each T_c, of a device with these flags."""
            found = (run_device(arguments.bundle, server, arguments.images, t, *flags) for t in at)
            return [offramp_row(*one, labels) for one in found]

        rows = sweep()
        then = sweep(*device) if device else []
        # With the last flag, where there is one: that is what the caller looks at.
        chosen = (arguments.threshold or [bundle.manifest.threshold])[-1]
        check = check_counters(arguments.bundle, server, arguments.images, chosen, *device)
    baselines = picture_rows(whole, arguments.images, labels)
    rivals = hybrid_rows(bundle, whole, arguments.images, labels)
    if arguments.json:
        print(
            json.dumps(
                {
                    "bundle": bundle.manifest.name,
                    "images": len(labels),
                    "offramp": [row.__dict__ for row in rows],
                    "then_pictures": [row.__dict__ for row in then],
                    "baselines": [row.__dict__ for row in baselines + rivals],
                    "counters": check,
                },
                indent=1,
            )
        )
    else:
        print_table(say, rows, then, baselines, rivals)
        print_saving(say, rows, baselines + rivals, bundle.manifest.threshold)
        print_check(say, check, chosen)
        say(f"\n{time.perf_counter() - start:.1f} s")
    if not all(line["agree"] for line in check):
        raise OfframpError("the metrics pages and the summary disagree")
    return 0


def read_labels(images: Path, classes: list[str]) -> dict[str, str]:
    """File name to class, of a folder's ``labels.csv``. Raises ConfigError or DataError."""
    path = images / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected a CSV with the columns file,label") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: expected a CSV with the columns file,label") from None
    if not labels or not set(labels.values()) <= set(classes):
        raise DataError(f"{path}: expected labels among {', '.join(classes[:12])}")
    return labels


@dataclass(frozen=True)
class Server:
    """A running ``cloud-server``."""

    address: str
    metrics: str


@contextmanager
def running_server(bundle: Path, *flags: str) -> Iterator[Server]:
    """A ``cloud-server`` on free ports; SIGTERM at the end, which must drain it."""
    command = [
        "offramp.server.app", "--bundle", str(bundle), "--listen", "127.0.0.1:0", "--metrics-port", "0",
        *flags,
    ]  # fmt: skip
    with _process(command) as process:
        assert process.stderr is not None
        found = _wait_for(process.stderr, r"listening on (\S+), metrics on (\S+)", "cloud-server")
        yield Server(found[1], found[2])
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        if process.wait(START_SECONDS) != 0:
            raise UnavailableError(f"cloud-server ended with status {process.returncode}, expected 0")


def run_device(
    bundle: Path, server: Server, images: Path, threshold: float, *flags: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One ``edge-device`` run over a folder: its records and its summary."""
    command = _device_command(bundle, server, images, threshold, *flags)
    with _process(command) as process:
        out, err = process.communicate()
    if process.returncode != 0:
        raise UnavailableError(f"edge-device ended with status {process.returncode}: {err.strip()}")
    *records, last = (json.loads(line) for line in out.splitlines())
    return records, last["summary"]


def _device_command(bundle: Path, server: Server, images: Path, threshold: float, *flags: str) -> list[str]:
    return [
        "offramp.device.app", "--bundle", str(bundle), "--server", server.address,
        "--threshold", str(threshold), *flags, "--json", str(images),
    ]  # fmt: skip


def offramp_row(records: list[dict[str, Any]], summary: dict[str, Any], labels: dict[str, str]) -> Row:
    """Accuracy, exit rate and mean bytes of one run, over all images."""
    right = sum(record["label"] == labels[Path(record["image"]).name] for record in records)
    wire = summary["wire_bytes"]
    return Row(
        name=f"T_c = {summary['threshold']:g}",
        accuracy=right / len(records),
        exit_rate=summary["exit_rate"],
        payload_bytes_mean=summary["payload_bytes_mean"],
        wire_bytes_mean=None if wire is None else (wire["sent"] + wire["received"]) / len(records),
    )


def picture_rows(whole: Bundle, images: Path, labels: dict[str, str]) -> list[Row]:
    """The same images sent as they are, to the whole model on the server."""
    engine = Engine(whole, cpus.available())
    pictures = {name: _open(images / name) for name in labels}
    ways: list[tuple[str, Way]] = [
        ("raw INT8 activation", lambda picture: (whole.codec.raw_bytes, picture)),
        ("raw pixels", lambda picture: (len(picture.tobytes()), picture)),
        ("PNG", lambda picture: _encode(picture, "PNG", optimize=True)),
        *((f"JPEG quality {q}", _encoder("JPEG", quality=q)) for q in (90, 50, 20)),
        *((f"WebP quality {q}", _encoder("WEBP", quality=q, method=6)) for q in (90, 50, 20)),
    ]
    rows = []
    for name, encode in ways:
        sizes, inputs = [], []
        for picture in pictures.values():
            size, seen = encode(picture)
            sizes.append(size)
            inputs.append(to_input(seen, whole.manifest.preprocessing))
        predicted = whole_answers(engine, np.stack(inputs)).best
        right = sum(
            whole.manifest.classes[best] == label
            for best, label in zip(predicted, labels.values(), strict=True)
        )
        rows.append(Row(name, right / len(labels), None, sum(sizes) / len(sizes), None))
    return rows


def hybrid_rows(bundle: Bundle, whole: Bundle, images: Path, labels: dict[str, str]) -> list[Row]:
    """The rival to beat: the same early exit at its own T_c, the unsure images as WebP to the whole model."""
    threads, threshold = cpus.available(), bundle.manifest.threshold
    engine, server = Engine(bundle, threads), Engine(whole, threads)
    pictures = [_open(images / name) for name in labels]
    truth = [bundle.manifest.classes.index(label) for label in labels.values()]
    preprocessing = bundle.manifest.preprocessing
    _, probabilities = head_answers(
        engine, np.stack([to_input(picture, preprocessing) for picture in pictures])
    )
    exits = probabilities.max(axis=1) > threshold
    rows = []
    for quality in (50, 20):
        best = probabilities.argmax(axis=1)
        unsure = [_encode(pictures[i], "WEBP", quality=quality, method=6) for i in np.flatnonzero(~exits)]
        if unsure:
            seen = np.stack([to_input(picture, whole.manifest.preprocessing) for _, picture in unsure])
            answered = whole_answers(server, seen)
            best[~exits] = answered.answers(probabilities[~exits], bundle.manifest.sent_answer)
        sent = sum(size for size, _ in unsure)
        rows.append(
            Row(
                f"WebP quality {quality}, T_c = {threshold:g}",
                float((best == truth).mean()),
                float(exits.mean()),
                sent / len(labels),
                None,
            )
        )
    return rows


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except OSError as error:
        raise DataError(f"{path}: {error}") from None


def _encoder(kind: str, **settings: int) -> Way:
    return lambda picture: _encode(picture, kind, **settings)


def _encode(picture: Image.Image, kind: str, **settings: int) -> tuple[int, Image.Image]:
    """Size of the file, bytes, and what its receiver sees."""
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    size = file.tell()
    with Image.open(file) as received:
        return size, received.convert("RGB")


def check_counters(
    bundle: Path, server: Server, images: Path, threshold: float, *flags: str
) -> list[dict[str, Any]]:
    """Run one device, fetch both metrics pages, and hold them against the device's own summary."""
    before = fetch_metrics(server.metrics)
    hold = ("--hold", "--metrics-port", "0")
    command = _device_command(bundle, server, images, threshold, *flags, *hold)
    with _process(command) as process:
        assert process.stdout is not None and process.stderr is not None
        page = _wait_for(process.stderr, r"metrics on (\S+)", "edge-device")[1]
        summary = None
        for line in process.stdout:
            if (record := json.loads(line)).get("summary"):
                summary = record["summary"]
                break
        if summary is None:
            raise UnavailableError("edge-device ended without a summary")
        device = fetch_metrics(page)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    after = fetch_metrics(server.metrics)
    answered = 'offramp_server_frames_total{result="answered"}'
    received, pictures = "offramp_server_payload_bytes_total", "offramp_server_picture_bytes_total"
    pairs = [
        *((f"images, {s}", device[f'offramp_device_images_total{{source="{s}"}}'], summary[s])
          for s in ("early_exit", "server", "fallback")),
        ("payload bytes", device["offramp_device_payload_bytes_total"], summary["payload_bytes"]),
        ("frames answered by the server", after[answered] - before[answered],
          summary["server"] + summary["pictures"]),
        ("payload bytes read by the server", after[received] - before[received], summary["payload_bytes"]),
    ]  # fmt: skip
    if flags:
        sent = summary["picture_bytes"]
        pairs.append(("of these pictures", device["offramp_device_picture_bytes_total"], sent))
        pairs.append(("of these pictures, by the server", after[pictures] - before[pictures], sent))
    if summary["wire_bytes"] is not None:
        for direction in ("sent", "received"):
            counter = device[f'offramp_device_wire_bytes_total{{direction="{direction}"}}']
            pairs.append((f"wire bytes {direction}", counter, summary["wire_bytes"][direction]))
    return [
        {"what": what, "metrics_page": counter, "summary": told, "agree": counter == told}
        for what, counter, told in pairs
    ]


def fetch_metrics(address: str) -> dict[str, float]:
    """Each sample of a metrics page by its name and labels, as Prometheus would read it."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = float(sample.value)
    return values


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _wait_for(stream: IO[str], pattern: str, program: str) -> re.Match[str]:
    """The line of a program's log that matches; raises UnavailableError with its log if it ends first."""
    seen = []
    for line in stream:
        if found := re.search(pattern, line):
            return found
        seen.append(line.strip())
    raise UnavailableError(f"{program} did not start: {' / '.join(seen)}")


def print_table(
    say: Callable[[str], None], rows: list[Row], then: list[Row], baselines: list[Row], rivals: list[Row]
) -> None:
    """All rows, bytes as means over all images."""
    say("\nMean bytes over all images; an image that exits early sends 0.")
    say(f"{'':<34} {'accuracy':>9} {'exit rate':>10} {'payload B':>10} {'wire B':>8}")
    say("early exit here, coded activation of the unsure to the server")
    for row in rows:
        say(_line(row))
    if then:
        say("… then a picture of those whose answer is unsure too to the whole model")
    for row in then:
        say(_line(row))
    say("everything to the whole model on the server (sizes of payload or file alone)")
    for row in baselines:
        say(_line(row))
    say("early exit here, the unsure as pictures to the whole model on the server (size of the file alone)")
    for row in rivals:
        say(_line(row))


def _line(row: Row) -> str:
    exit_rate = "" if row.exit_rate is None else f"{row.exit_rate:.1%}"
    wire = "" if row.wire_bytes_mean is None else f"{row.wire_bytes_mean:.1f}"
    return f"  {row.name:<32} {row.accuracy:>9.2%} {exit_rate:>10} {row.payload_bytes_mean:>10.1f} {wire:>8}"


def print_saving(say: Callable[[str], None], rows: list[Row], baselines: list[Row], threshold: float) -> None:
    """What the bundle's own threshold costs beside each alternative."""
    chosen = next(row for row in rows if row.name == f"T_c = {threshold:g}")
    say(f"\nAt the bundle's own threshold ({chosen.name}, {chosen.accuracy:.2%}) an image costs")
    for row in baselines:
        say(f"  {_share(chosen, row)} {row.name} ({row.accuracy:.2%})")


def _share(chosen: Row, row: Row) -> str:
    if row.payload_bytes_mean:
        return f"{chosen.payload_bytes_mean / row.payload_bytes_mean:7.1%} of the bytes of"
    # At T_c = 0 neither sends anything.
    return "as many bytes as" if not chosen.payload_bytes_mean else "   more bytes than"


def print_check(say: Callable[[str], None], check: list[dict[str, Any]], threshold: float) -> None:
    """Counters beside the summary."""
    say(f"\nBoth /metrics pages against the device's summary, at T_c = {threshold:g}:")
    say(f"  {'':<34} {'page':>10} {'summary':>10}")
    for line in check:
        verdict = "" if line["agree"] else "  DISAGREE"
        say(f"  {line['what']:<34} {line['metrics_page']:>10,.0f} {line['summary']:>10,}{verdict}")
