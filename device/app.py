"""``edge-device``: classify images here, and ask the server about the unsure ones."""

from __future__ import annotations

import logging
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.ending import end_process
from offramp.common.errors import ConfigError, DataError, ExitCode, OfframpError
from offramp.common.logs import start_log
from offramp.common.metrics import serve_metrics, timed
from offramp.common.settings import make_parser, read_settings
from offramp.common.streams import guarded_streams, stop_waiting_when
from offramp.common.wire.address import join_address
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.notify import Notifier
from offramp.device.settings import DeviceSettings
from offramp.device.stop import Stop

if TYPE_CHECKING:
    from offramp.common.bundle.load import Bundle
    from offramp.device.device import Device
    from offramp.device.live import Live
    from offramp.device.printer import Printer
    from offramp.device.result import Correction
    from offramp.device.sources.source import Source

EPILOG = """\
examples:
  edge-device --bundle models/digits-mobilenetv2-exit12 examples/digits
  edge-device --bundle DIR --server gateway:50051 --insecure --threshold 0.9 --json photos/ > results.jsonl
  edge-device --bundle DIR --threshold 0 --quiet photos/      # all here, no server needed
  edge-device --bundle DIR --server a:50051 --server b:50051 --insecure --spool unsure.db photos/
  edge-device --bundle DIR --server gateway:50051 --insecure --repeat --rate 20 --quiet photos/
  edge-device --bundle DIR --server gateway:50051 --tls-ca ca.pem --byte-budget 2kB/s --watch inbox/
  edge-device --bundle DIR --server gateway:50051 --tls-ca ca.pem --picture-threshold 0.5 photos/
  edge-device --bundle DIR --server gateway:50051 --tls-ca ca.pem --audit 0.01 --keep samples --watch inbox/

The answers come in the order in which they are ready; `index` is the image's place in the input.

exit status: 0 every image answered as it should be, 1 a bug, 2 wrong flags, 3 the server did not answer
  for some images (their early exit did), 4 unusable bundle, 5 some images could not be read, 6 the server
  runs another bundle, refuses the token or breaks the protocol, 7 the metrics port cannot be bound,
  130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status.

    argv: None: the process's own, which then ends.
    """
    set_grpc_environment()
    with guarded_streams():
        status = _main(argv)
    if argv is None:
        end_process(status)
    return status


def _main(argv: Sequence[str] | None) -> int:
    try:
        parser = make_parser(
            "edge-device",
            DeviceSettings,
            "Run a bundle's head; offload what its early exit is unsure of.",
            EPILOG,
        )
        parser.add_argument(
            "images",
            nargs="+",
            metavar="images",
            help="folders; pictures (PNG, JPEG, WebP, BMP, GIF, TIFF; HEIF and AVIF with the extra [heic]), "
            "or WAV files where the bundle takes sounds; .npz and .npy arrays; .txt lists of paths; video "
            "files; - for paths on standard input; camera:N, "
            "rtsp://… or rtsps://… (videos and cameras need the extra [camera])",
        )
        parser.add_argument(
            "--watch",
            action="store_true",
            help="keep looking at the folders for new files, until a signal",
        )
        parser.add_argument(
            "--repeat",
            action="store_true",
            help="after the last image start again with the first, until a signal",
        )
        parser.add_argument("--json", action="store_true", help="one JSON object a line, the summary last")
        parser.add_argument("--quiet", action="store_true", help="print the summary only")
        parser.add_argument(
            "--hold",
            action="store_true",
            help="after the last image keep serving metrics until SIGTERM or SIGINT",
        )
        try:
            arguments = parser.parse_args(argv)
        finally:
            # What cannot be written shows here, not at the interpreter's exit; --help exits on its own.
            sys.stdout.flush()
        settings = read_settings(DeviceSettings, arguments)
        log = start_log("edge-device", settings.log_level, settings.log_format)
        return run(settings, arguments, log)
    except OfframpError as error:
        print(f"edge-device: {error}", file=sys.stderr)
        return error.exit_code


def run(settings: DeviceSettings, arguments: Namespace, log: logging.Logger) -> int:
    """Answer all images. Raises OfframpError for what stops it before the first one."""
    notifier = Notifier()
    stop = Stop(notifier)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from offramp.common.bundle.load import load_bundle
    from offramp.common.bundle.manifest import HEAD
    from offramp.common.bundle.signature import TrustedKeys
    from offramp.common.inputs.spec import TensorInput
    from offramp.common.part.engine import Engine
    from offramp.common.part.providers import providers_of
    from offramp.common.tracing import Tracing
    from offramp.device.device import Device
    from offramp.device.live import Live, page_token
    from offramp.device.printer import Printer
    from offramp.device.publish import Publisher, published
    from offramp.device.report import Report
    from offramp.device.sources.source import Source
    from offramp.device.totals import Totals

    token = page_token(settings)
    publisher = Publisher.of(settings)
    check_apart(settings.keep, arguments.images)
    trusted = None if settings.trusted_key is None else TrustedKeys(settings.trusted_key)
    bundle = load_bundle(settings.bundle, trusted)
    if settings.compare_jpeg is not None and isinstance(bundle.manifest.input, TensorInput):
        raise ConfigError(f"--compare-jpeg: the bundle takes {bundle.manifest.input.what}, not pictures")
    # Here, where a signal ends it: `Device` finds what passed.
    providers = providers_of(settings.providers)
    Engine(bundle, settings.threads, providers=providers, cancelled=stop.is_set).try_batches(HEAD)
    source = Source(arguments.images, bundle.manifest.input, arguments.watch, stop.wait, arguments.repeat)
    printer: Printer | None = None

    def correct(correction: Correction) -> None:
        if printer is not None:
            printer.correct(correction)

    wanted = settings.corrections or settings.spool is not None
    tracing = Tracing("edge-device") if settings.otel else None
    device = Device.from_settings(bundle, settings, correct if wanted else None, tracing)
    totals = Totals()
    live = Live(device, settings, token) if settings.page else None
    page = None if live is None else live.page
    with (
        serve_metrics(device.metrics.registry, settings.metrics_host, settings.metrics_port, page) as port,
        published(publisher, bundle.manifest.name) as seen,
    ):
        if port is not None:
            _say_where(log, join_address(settings.metrics_host, port), settings.page, bundle)
        parts = len(bundle.manifest.parts)
        totals.parts = None if parts == 2 else {str(part): 0 for part in range(1, parts + 1)}
        servers = settings.server
        totals.servers = None if len(servers) == 1 else dict.fromkeys(servers, 0)
        report = Report(arguments.json, arguments.quiet, source.count(), sys.stdout, parts, len(servers))
        stop_waiting_when(stop.is_set)
        if live is not None:
            seen = (*seen, live.seen)
        printer = Printer(report, totals, bundle.codec.raw_bytes, stop, seen)
        start = time.perf_counter()
        with device:
            notifier.ready()
            _feed(device, source, settings, printer, stop, live)
            if settings.corrections:
                _wait_for_corrections(device, settings, stop)
        seconds = time.perf_counter() - start
        printer.finish()
        if tracing is not None:
            tracing.close()
        totals.passed_over = source.passed_over
        totals.audits = device.audit_counts() if settings.audit else None
        report.finish(totals.summary(seconds, device.threshold, device.wire_bytes()))
        interrupted = stop.is_set()
        if interrupted:
            notifier.stopping()
        if arguments.hold:
            stop.wait()
    if interrupted:
        return ExitCode.INTERRUPTED
    return exit_code(totals.images["fallback"], totals.unreadable, device.failure)


def _say_where(log: logging.Logger, where: str, page: bool, bundle: Bundle) -> None:
    """What serves what, once it does."""
    if page:
        log.info("page on http://%s/", where)
    log.info("metrics on %s", where)
    if bundle.manifest.figures.drift is None:
        log.info("%s has no reference for drift of confidence and classes", bundle.manifest.name)


def check_apart(keep: str | None, inputs: Sequence[str]) -> None:
    """Raises ConfigError for a folder of samples that lies in a folder whose files are answered."""
    if keep is None:
        return
    try:
        kept = Path(keep).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL: opening it says so
        return
    for each in inputs:
        if Path(each).is_dir() and kept.is_relative_to(Path(each).resolve()):
            raise ConfigError(
                f"--keep {keep}: lies in {each}, whose files are answered, expected a folder elsewhere"
            )


def _feed(
    device: Device,
    source: Source,
    settings: DeviceSettings,
    printer: Printer,
    stop: Stop,
    live: Live | None = None,
) -> None:
    """Hand in all images, no faster than ``--rate``, until a signal."""
    from offramp.common.inputs.pictures import jpeg_bytes

    due = time.monotonic()
    items = iter(source)
    for index in range(sys.maxsize):
        with timed(device.metrics.read_seconds):
            item = next(items, None)
        if item is None or stop.is_set() or not printer.wait_for_room():
            return
        if isinstance(item.image, DataError):
            device.metrics.image_errors.inc()
            printer.unreadable(index, item.name, item.image)
        else:
            if settings.compare_jpeg is not None:
                device.metrics.jpeg_bytes.inc(jpeg_bytes(item.image, settings.compare_jpeg))
            if live is not None:
                live.pictures.offer(item.image)
            future = device.submit(
                item.image,
                name=item.name,
                index=index,
                decode_seconds=item.decode_seconds,
                file=item.file,
            )
            printer.expect(index, item.name, future)
        stop.beat()
        if settings.rate is not None:
            due += 1 / settings.rate
            if stop.wait(due - time.monotonic()):
                return


def _wait_for_corrections(device: Device, settings: DeviceSettings, stop: Stop) -> None:
    """After the last image: late replies may take as long again, and the spool as long as it gets on."""
    end = time.monotonic() + settings.timeout
    while time.monotonic() < end and not stop.is_set():
        stop.wait(0.05)
        if device.wait_spool(0) and not device.late_replies_due():
            return


def exit_code(fallbacks: int, unreadable: int, failure: OfframpError | None) -> ExitCode:
    """A run's exit status: the worst of what happened to its images."""
    if fallbacks:
        return ExitCode.UNAVAILABLE if failure is None else failure.exit_code
    return ExitCode.DATA if unreadable else ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main())
