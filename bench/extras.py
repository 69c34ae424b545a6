"""``offramp bench extras``: what audits, samples and the live page take of a device's speed.

One process has a device for each of them and one without any; a real ``cloud-server`` runs on other cores.
In each round every device answers the same images in short slices as fast as it can, one device after the
other, in a new order for each slice, and then once at a steady rate; it is compared with the plain one of
that slice or round. Short slices, because a machine's pace changes within seconds by more than is sought.
``plain again`` is a second plain device: what is found for it is noise.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.processes import pinned, running_server
from offramp.bench.timing import environment
from offramp.common.arguments import Parser, fraction
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.metrics import serve_metrics
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.sources.source import Source

if TYPE_CHECKING:
    from concurrent.futures import Future

    from offramp.device import Device, Result
    from offramp.device.live import Live

EPILOG = """\
example:
  offramp bench extras --rounds 30 --json > extras.json
  offramp bench extras --of audits --slices 100 --seconds 0

fast: images a second, wall clock, and processor time of an image, all threads, audits' answers included.
steady: latency of images that exit early and of those that are sent, at --rate.
Each figure is a ratio to the plain device of the same slice or round: their median, and the range that holds
the true median with a probability of 95 %. A rate under 1 or a time over 1 is a loss.
"""
PLAIN, AGAIN = "plain", "plain again"
EXTRAS = ("audits", "samples", "page", "all three")
VIEWER = """
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
with socket.create_connection((host, int(port))) as page:
    page.sendall(b"GET /events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    page.recv(1 << 16)
    print("reads", flush=True)
    while page.recv(1 << 16):
        pass
"""
WAIT = 30.0
RESAMPLES = 2000


@dataclass
class Variant:
    """A device, and what it was measured at in each slice and in each round."""

    device: Device
    paged: bool = False
    fast: list[dict[str, float]] = field(default_factory=list)
    steady: list[dict[str, float]] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Run it; returns its exit status."""
    parser = Parser(
        "offramp bench extras",
        description="Measure what audits, samples and the live page take of a device.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument("--threshold", type=fraction, default=0.9, metavar="T", help="T_c (default: 0.9)")
    parser.add_argument("--audit", type=fraction, default=0.01, metavar="SHARE")
    parser.add_argument(
        "--of", nargs="+", choices=EXTRAS, default=list(EXTRAS), help="what to measure (default: everything)"
    )
    parser.add_argument("--slices", type=int, default=10, metavar="N", help="fast ones of each round")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="images of each slice")
    parser.add_argument("--rate", type=float, default=200.0, metavar="R", help="images a second when steady")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each steady run; 0: none")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    set_grpc_environment()
    bundle = load_bundle(arguments.bundle)
    items = Source([arguments.images], bundle.manifest.input)
    images = [item.image for item in items if isinstance(item.image, np.ndarray)][:500]
    cores = sorted(os.sched_getaffinity(0))
    others = cores[:-1] or cores
    with (
        running_server(arguments.bundle, "--threads", 1, cores=others) as server,
        pinned(cores[-1:]),
        tempfile.TemporaryDirectory(prefix="offramp-kept-") as folder,
        ExitStack() as stack,
    ):
        variants = _variants(bundle, server.address, arguments, Path(folder), stack)
        names = list(variants)
        for number in range(arguments.rounds + 1):
            order = random.Random(number)
            for _ in range(arguments.slices if number else 1):  # the first round warms up
                order.shuffle(names)
                for name in names:
                    fast = _fast(variants[name], bundle, images, arguments.count, others)
                    if number:
                        variants[name].fast.append(fast)
            for name in names if number and arguments.seconds else ():
                variants[name].steady.append(_steady(variants[name], bundle, images, arguments, others))
        audits = {name: variant.device.audit_counts() for name, variant in variants.items()}
    result = {
        "environment": environment(["grpcio", "onnxruntime"], cores[-1]),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "plain": {
            name: float(np.median([each[name] for each in figures if name in each]))
            for figures in (variants[PLAIN].fast, variants[PLAIN].steady)
            for name in (figures[0] if figures else ())
        },
        "ratios": {
            name: compare(variants[PLAIN].fast, variant.fast)
            | compare(variants[PLAIN].steady, variant.steady)
            for name, variant in variants.items()
            if name != PLAIN
        },
        "audits": audits,
    }
    print(json.dumps(result, indent=1)) if arguments.json else report(result)
    return 0


def _variants(
    bundle: Bundle, address: str, arguments: Any, folder: Path, stack: ExitStack
) -> dict[str, Variant]:
    from offramp.device import AuditOptions, Device, KeepOptions, LinkOptions

    audited = AuditOptions(arguments.audit, 1)

    def made(**options: Any) -> Device:
        link = LinkOptions(timeout=WAIT)
        threshold = arguments.threshold
        return stack.enter_context(Device(bundle, server=address, threshold=threshold, link=link, **options))

    found = {PLAIN: Variant(made()), AGAIN: Variant(made())}
    for name in arguments.of:
        options: dict[str, Any] = {}
        if name in ("samples", "all three"):
            options["keep"] = KeepOptions(folder / name.replace(" ", "-"))
        if name in ("audits", "all three"):
            options["audits"] = audited
        found[name] = Variant(made(**options), paged=name in ("page", "all three"))
    return found


def _fast(
    variant: Variant,
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    count: int,
    others: Sequence[int],
) -> dict[str, float]:
    """One slice of one device."""
    with _page(variant, bundle, others) as live:
        _run(variant.device, live, images, max(1, count // 20), None)
        _settle(variant.device)
        processor, start = time.process_time(), time.perf_counter()
        _run(variant.device, live, images, count, None)
        wall = time.perf_counter() - start
        _settle(variant.device)
        return {
            "fast: images a second": count / wall,
            "fast: processor time": (time.process_time() - processor) / count,
        }


def _steady(
    variant: Variant,
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    arguments: Any,
    others: Sequence[int],
) -> dict[str, float]:
    """One steady run of one device."""
    count = max(1, round(arguments.rate * arguments.seconds))
    with _page(variant, bundle, others) as live:
        results = _run(variant.device, live, images, count, arguments.rate)
        _settle(variant.device)
    figures = {}
    for source, name in (("early_exit", "early exit"), ("server", "sent")):
        seconds = [each.latency_seconds for each in results if each.source == source]
        if seconds:
            figures[f"steady: {name}, median"] = float(np.median(seconds))
            figures[f"steady: {name}, 99 %"] = float(np.quantile(seconds, 0.99))
    return figures


def _run(
    device: Device,
    live: Live | None,
    images: Sequence[NDArray[np.uint8]],
    count: int,
    rate: float | None,
) -> list[Result]:
    """Hand images in as ``edge-device`` does; their results."""
    futures: list[Future[Result]] = []
    due = time.monotonic()
    for index in range(count):
        image = images[index % len(images)]
        if live is not None:
            live.pictures.offer(image)
        future = device.submit(image, name="image", index=index)
        if live is not None:
            future.add_done_callback(lambda done: live.seen(0, "image", done.result()))
        futures.append(future)
        if rate is not None:
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
    return [future.result() for future in futures]


def _settle(device: Device) -> None:
    """Wait until the audits that are under way have their answers."""
    device._link.wait_idle()


@contextmanager
def _page(variant: Variant, bundle: Bundle, cores: Sequence[int]) -> Iterator[Live | None]:
    """The device's page with one viewer, on other cores; None for one without."""
    if not variant.paged:
        yield None
        return
    from offramp.device.live import Live
    from offramp.device.settings import DeviceSettings

    given = {"bundle": str(bundle.path), "metrics_port": 0, "page": True}
    live = Live(variant.device, DeviceSettings.model_validate(given))
    host = "127.0.0.1"
    with serve_metrics(variant.device.metrics.registry, host, 0, live.page) as port:
        command = [sys.executable, "-I", "-S", "-c", VIEWER, f"{host}:{port}"]
        with pinned(cores):
            viewer = subprocess.Popen(command, stdout=subprocess.PIPE)
        with viewer:
            assert viewer.stdout is not None
            try:
                if not viewer.stdout.readline():
                    raise RuntimeError("the page has no viewer")
                yield live
            finally:
                viewer.kill()


def compare(plain: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Each figure as a ratio to the plain device's beside it: its median, and from where to where."""
    found = {}
    for name in plain[0] if plain else ():
        pairs = [(a[name], b[name]) for a, b in zip(plain, others, strict=True) if name in a and name in b]
        if pairs:
            ratios = np.array([other / one for one, other in pairs])
            low, high = interval(ratios)
            found[name] = {"ratio": float(np.median(ratios)), "low": low, "high": high, "pairs": len(pairs)}
    return found


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Where the median lies with a probability of 95 %: of resampled values."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def report(result: dict[str, Any]) -> None:
    """The figures as text."""
    surroundings = result["environment"]
    print(f"{surroundings['cpu']}, {surroundings['cores']} cores, load {surroundings['load_average'][0]}\n")
    for name, value in result["plain"].items():
        shown = f"{value:,.0f}" if "second" in name else f"{value * 1e3:.3f} ms"
        print(f"plain, {name:<32} {shown:>12}")
    for name, figures in result["ratios"].items():
        print(f"\n{name}")
        for what, each in figures.items():
            change = f"{(each['ratio'] - 1) * 100:+.2f} %"
            around = f"{(each['low'] - 1) * 100:+.2f} … {(each['high'] - 1) * 100:+.2f} %"
            print(f"  {what:<34} {change:>10}   {around}")
