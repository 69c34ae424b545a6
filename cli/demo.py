"""``offramp demo``: a real server, a real device, real images, and the bytes beside the alternatives.

Every figure is measured as it runs: the answers come from ``edge-device`` processes, the bytes from their
own counters, and the picture baselines from encoding the same images and giving them to the whole model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offramp.bench.labels import labels_of
from offramp.bench.metrics import fetch_metrics
from offramp.bench.processes import Program, running, running_server
from offramp.bench.rival import Row, coded_pictures, hybrid_rows, picture_rows
from offramp.common.arguments import Parser, fraction
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError, OfframpError, UnavailableError
from offramp.common.inputs.spec import Preprocessing

EPILOG = """\
examples:
  offramp demo                                   # in a checkout: the shipped bundle and photos of waste
  offramp demo --bundle DIR --images DIR --json  # DIR has class folders, or pictures and labels.csv
  offramp demo --page                            # the same two programs, live in a browser
  offramp demo --bundle CODE --whole PLAIN --images DIR
  offramp demo --bundle CODE --whole PLAIN --images DIR --threshold 0.93 --picture-threshold 0.5
"""
SHIPPED = Path("models/trashnet-efficientnet-lite0")
WHOLE = Path("models/trashnet-efficientnet-lite0-whole")
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
PAGE_RATE = 20
"""Images a second, with --page."""
_DEVICE = "offramp.device.app"


def main(argv: Sequence[str]) -> int:
    """Run the command; raises OfframpError where a step fails."""
    parser = Parser(
        "offramp demo",
        description="Start cloud-server and edge-device on one bundle, sweep T_c, compare the bytes.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help=f"default: {SHIPPED}")
    parser.add_argument(
        "--whole",
        type=Path,
        metavar="DIR",
        help="bundle whose head and tail are the whole model that pictures are sent to; default: --bundle, "
        "and of the default bundle its own",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", default=Path("examples/trashnet"),
        help="pictures and labels.csv, or class folders (default: %(default)s)",
    )  # fmt: skip
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
    parser.add_argument(
        "--page", action="store_true", help="no table: serve both programs' live pages until Ctrl-C"
    )
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    path: Path = arguments.bundle or SHIPPED
    if arguments.page:
        return live(path, arguments.images, arguments.threshold)
    bundle = load_bundle(path)
    # A narrow code is trained for its own bytes; pictures deserve a model without one.
    whole = load_bundle(arguments.whole or (path if arguments.bundle else WHOLE))
    if whole.manifest.classes != bundle.manifest.classes:
        raise ConfigError(f"{whole.path}: has other classes than {path}")
    labels = labels_of(arguments.images, bundle.manifest.classes)

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
    with running_server(path, "--metrics-port", "0", *serving) as server:
        say(f"cloud-server on {server.address}, {bundle.manifest.name}; {len(labels)} images")
        at = sorted({*THRESHOLDS, *arguments.threshold, bundle.manifest.threshold})

        def sweep(*flags: str) -> list[Row]:
            """A row for each T_c, of a device with these flags."""
            found = (run_device(path, server, arguments.images, t, *flags) for t in at)
            return [offramp_row(*one, arguments.images, labels) for one in found]

        rows = sweep()
        then = sweep(*device) if device else []
        # With the last flag, where there is one: that is what the caller looks at.
        chosen = (arguments.threshold or [bundle.manifest.threshold])[-1]
        check = check_counters(path, server, arguments.images, chosen, *device)
    if server.process.returncode != 0:
        raise UnavailableError(f"cloud-server ended with status {server.process.returncode}, expected 0")
    own = next(row for row in rows if row.name == f"T_c = {bundle.manifest.threshold:g}")
    baselines, rivals = list[Row](), list[Row]()
    # Of sounds and tensors there are no pictures to compare with.
    if isinstance(bundle.manifest.input, Preprocessing):
        coded = coded_pictures(whole, arguments.images, labels)
        baselines = picture_rows(whole, coded, labels)
        rivals = hybrid_rows(bundle, coded, arguments.images, labels, own.accuracy)
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
        print_saving(say, own, len(labels), baselines, rivals)
        print_table(say, rows, then, baselines, rivals)
        print_check(say, check, chosen)
        say(f"\n{time.perf_counter() - start:.1f} s")
    if not all(line["agree"] for line in check):
        raise OfframpError("the metrics pages and the summary disagree")
    return 0


def live(bundle: Path, images: Path, thresholds: Sequence[float]) -> int:
    """A server and a device that answers the images again and again, with their pages, until Ctrl-C."""
    serving = ("--metrics-port", "0", "--page")
    device = ["--bundle", bundle, *serving, "--repeat", "--rate", PAGE_RATE, "--quiet"]
    device += ["--threshold", thresholds[-1]] if thresholds else []
    with running_server(bundle, *serving) as server:
        device += ["--server", server.address, images]
        with running(_DEVICE, *device, ready="metrics on", stdout=subprocess.DEVNULL) as running_device:
            print(
                f"edge-device on http://{running_device.metrics}/, cloud-server on http://{server.metrics}/"
            )
            print("until Ctrl-C", flush=True)
            try:
                status = running_device.process.wait()
            except KeyboardInterrupt:
                return 0
            raise UnavailableError(
                f"edge-device ended with status {status}: {' / '.join(running_device.log)}"
            )


def run_device(
    bundle: Path, server: Program, images: Path, threshold: float, *flags: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One ``edge-device`` run over a folder: its records and its summary."""
    command = [sys.executable, "-m", _DEVICE, *_device_flags(bundle, server, images, threshold, *flags)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise UnavailableError(f"edge-device ended with status {ended.returncode}: {ended.stderr.strip()}")
    *records, last = (json.loads(line) for line in ended.stdout.splitlines())
    return records, last["summary"]


def _device_flags(bundle: Path, server: Program, images: Path, threshold: float, *flags: str) -> list[str]:
    return [
        "--bundle", str(bundle), "--server", server.address,
        "--threshold", str(threshold), *flags, "--json", str(images),
    ]  # fmt: skip


def offramp_row(
    records: list[dict[str, Any]], summary: dict[str, Any], images: Path, labels: dict[str, str]
) -> Row:
    """Accuracy, exit rate and mean bytes of one run, over all images."""
    right = sum(
        record["label"] == labels[Path(record["image"]).relative_to(images).as_posix()] for record in records
    )
    wire = summary["wire_bytes"]
    return Row(
        name=f"T_c = {summary['threshold']:g}",
        accuracy=right / len(records),
        exit_rate=summary["exit_rate"],
        payload_bytes_mean=summary["payload_bytes_mean"],
        wire_bytes_mean=None if wire is None else (wire["sent"] + wire["received"]) / len(records),
    )


def check_counters(
    bundle: Path, server: Program, images: Path, threshold: float, *flags: str
) -> list[dict[str, Any]]:
    """Run one device, fetch both metrics pages, and hold them against the device's own summary."""
    before = fetch_metrics(server.metrics)
    flags = (*flags, "--hold", "--metrics-port", "0")
    command = _device_flags(bundle, server, images, threshold, *flags)
    with running(_DEVICE, *command, ready="metrics on", stdout=subprocess.PIPE) as holding:
        assert holding.process.stdout is not None
        records = (json.loads(line) for line in holding.process.stdout)
        summary = next((record["summary"] for record in records if "summary" in record), None)
        if summary is None:
            raise UnavailableError("edge-device ended without a summary")
        device = fetch_metrics(holding.metrics)
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
        {"what": what, "metrics_page": counter, "summary": own, "agree": counter == own}
        for what, counter, own in pairs
    ]


def print_table(
    say: Callable[[str], None], rows: list[Row], then: list[Row], baselines: list[Row], rivals: list[Row]
) -> None:
    """All rows, bytes as means over all images."""
    say("\nMean bytes over all images; an image that exits early sends 0.")
    say(f"{'':<34} {'accuracy':>9} {'exit rate':>10} {'payload B':>10} {'wire B':>8}")
    say("early exit here, coded activations of unsure images to the server")
    for row in rows:
        say(_line(row))
    if then:
        say("… then a picture to the whole model if that answer is unsure too")
    for row in then:
        say(_line(row))
    if baselines:
        say("everything to the whole model on the server (sizes of payload or file alone)")
    for row in baselines:
        say(_line(row))
    if rivals:
        say("early exit here, unsure images as pictures to the whole model (size of the file alone)")
    for row in rivals:
        say(_line(row))


def _line(row: Row) -> str:
    exit_rate = "" if row.exit_rate is None else f"{row.exit_rate:.1%}"
    wire = "" if row.wire_bytes_mean is None else f"{row.wire_bytes_mean:.1f}"
    return f"  {row.name:<32} {row.accuracy:>9.2%} {exit_rate:>10} {row.payload_bytes_mean:>10.1f} {wire:>8}"


def print_saving(
    say: Callable[[str], None], own: Row, images: int, baselines: list[Row], rivals: list[Row]
) -> None:
    """What the bundle's own T_c gives and costs, beside the cheapest pictures that are as often right."""
    say(
        f"\nAt the bundle's own threshold ({own.name}) {own.accuracy:.2%} of {images} images are right, and "
        f"one costs {own.payload_bytes_mean:,.1f} B on average."
    )
    for what, rows in (("every image as a picture", baselines), ("early exit, then pictures", rivals)):
        if not rows:
            continue
        enough = [row for row in rows if row.accuracy >= own.accuracy - 1e-12]
        best = min(enough, key=lambda row: row.payload_bytes_mean, default=None)
        say(f"  {what + ':':<26} {_beside(own, best, max(row.accuracy for row in rows))}")


def _beside(own: Row, best: Row | None, most: float) -> str:
    if best is None:
        return f"not as often right at any quality tried ({most:.2%} at most)"
    if not best.payload_bytes_mean:
        return f"the early exit alone is as often right ({best.accuracy:.2%}), and sends nothing"
    if own.payload_bytes_mean:
        times = f"{best.payload_bytes_mean / own.payload_bytes_mean:,.1f} times as many"
    else:
        times = "where nothing is sent here"
    return f"{best.payload_bytes_mean:,.1f} B, {times} ({best.name}, {best.accuracy:.2%})"


def print_check(say: Callable[[str], None], check: list[dict[str, Any]], threshold: float) -> None:
    """Counters beside the summary."""
    say(f"\nBoth /metrics pages against the device's summary, at T_c = {threshold:g}:")
    say(f"  {'':<34} {'page':>10} {'summary':>10}")
    for line in check:
        verdict = "" if line["agree"] else "  DISAGREE"
        say(f"  {line['what']:<34} {line['metrics_page']:>10,.0f} {line['summary']:>10,}{verdict}")
