"""``offramp bench device``: what the device adds: bytes of the envelope, time of an offload and of the loop.

A real ``cloud-server`` runs beside it. Bytes are the kernel's counts of the connection (``TCP_INFO``), both
directions, below TLS and above IP.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.processes import running_server
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.part.engine import Engine
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.sources.source import Source

EPILOG = """\
example:
  offramp bench device --json > device.json

envelope: payloads of about --payload bytes at --rate images/s, with and without --coalesce.
offload: one image at a time (--window 1), beside head and tail in this process; medians.
loop: all images exit early, beside the head alone in a bare loop; processor time of one thread.
photo: a JPEG of 12 megapixels, from its bytes to the head's input, and through the head; medians.
"""
PHOTO = (4000, 3000)
WAIT = 30.0
ROUNDS = 5


def main(argv: Sequence[str]) -> int:
    """Run it; returns its exit status."""
    parser = Parser(
        "offramp bench device",
        description="Measure what the device adds to head and tail.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument("--payload", type=int, default=100, metavar="BYTES")
    parser.add_argument("--rate", type=float, default=50.0, metavar="R", help="images a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each envelope's run")
    parser.add_argument(
        "--coalesce",
        type=float,
        nargs="+",
        default=[0, 100, 200, 400, 800],
        metavar="MS",
        help="milliseconds",
    )
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    set_grpc_environment()
    bundle = load_bundle(arguments.bundle)
    items = Source([arguments.images], bundle.manifest.input)
    images = [item.image for item in items if isinstance(item.image, np.ndarray)][:200]
    result: dict[str, Any] = {"environment": environment(["grpcio", "onnxruntime"], -1)}
    with running_server(arguments.bundle, "--threads", 1) as server:
        address = server.address
        payload, codec = payload_of(bundle, images, arguments.payload)
        result["envelope"] = [
            envelope(bundle, address, codec, payload, arguments.rate, arguments.seconds, wait / 1000)
            for wait in arguments.coalesce
        ]
        result["offload"] = offload_cost(bundle, address, images)
        result["loop"] = loop_cost(bundle, address, images)
    result["photo"] = photo_cost(bundle)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        report(result)
    return 0


def payload_of(bundle: Bundle, images: list[NDArray[np.uint8]], size: int) -> tuple[bytes, int]:
    """A payload of about this size that decodes (a real activation, flat from some channel on), its codec."""
    engine = Engine(bundle)
    symbols, _ = engine.head(np.stack(images))
    # The commonest symbol of each channel is what its table codes shortest.
    modes = [np.bincount(symbols[:, c].ravel()).argmax() for c in range(symbols.shape[1])]
    best: tuple[int, bytes, int] | None = None
    for sample, kept in product(symbols[:16], range(symbols.shape[1] + 1)):
        flat = sample.copy()
        for channel in range(kept, flat.shape[0]):
            flat[channel] = modes[channel]
        codec, payload = bundle.codec.encode(flat)
        off = abs(len(payload) - size)
        if best is None or off < best[0]:
            best = (off, payload, int(codec))
    assert best is not None
    return best[1], best[2]


def envelope(
    bundle: Bundle, address: str, codec: int, payload: bytes, rate: float, seconds: float, coalesce: float
) -> dict[str, Any]:
    """Bytes of the connection for each offloaded image, once it is set up."""
    from offramp.common.codec.activation import CodecId
    from offramp.device.metrics import DeviceMetrics
    from offramp.link.link import Answer, Link, Outcome, Pace, Terms

    link = Link(
        [address],
        Terms(bundle.digest, len(bundle.manifest.classes), bundle.codec.raw_bytes),
        Pace(WAIT, window=4096, coalesce=coalesce),
        DeviceMetrics(bundle).link,
    )
    outcomes: list[tuple[float, Outcome]] = []

    def send() -> None:
        start = time.perf_counter()
        link.offload(
            CodecId(codec), payload, lambda outcome: outcomes.append((time.perf_counter() - start, outcome))
        )

    send()
    link.wait_idle()
    before = link.wire.total()
    count = round(rate * seconds)
    due = time.monotonic()
    for _ in range(count):
        send()
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
    link.wait_idle()
    after = link.wire.total()
    link.close()
    assert len(outcomes) == count + 1
    answered = sum(isinstance(outcome, Answer) for _, outcome in outcomes[1:])
    figures: dict[str, Any] = {
        "coalesce_ms": coalesce * 1000,
        "images": count,
        "answered": answered,
        "payload_bytes": len(payload),
        "latency_ms_median": statistics.median(seconds for seconds, _ in outcomes[1:]) * 1000,
    }
    if before is not None and after is not None:
        assert before.header_bytes is not None and after.header_bytes is not None
        sent, received = (after.sent - before.sent) / count, (after.received - before.received) / count
        figures |= {
            "sent_bytes": sent,
            "received_bytes": received,
            "sent_over_payload": sent / len(payload),
            "wire_over_payload": (sent + received) / len(payload),
            "tcp_ip_header_bytes": (after.header_bytes - before.header_bytes) / count,
        }
    return figures


def offload_cost(bundle: Bundle, address: str, images: list[NDArray[np.uint8]]) -> dict[str, float]:
    """What the way to the server and back adds to an image: seconds, medians."""
    from offramp.device import Device, LinkOptions

    engine = Engine(bundle)
    local: list[float] = []
    remote: list[float] = []
    with Device(bundle, server=address, threshold=1.0, link=LinkOptions(window=1, timeout=WAIT)) as device:
        for number in range(ROUNDS + 1):
            for image in images:
                start = time.perf_counter()
                symbols, _ = engine.head(image[None])
                engine.tail(symbols)
                middle = time.perf_counter()
                device.infer(image)
                end = time.perf_counter()
                if number:  # the first round warms up
                    local.append(middle - start)
                    remote.append(end - middle)
    return {
        "head_and_tail_ms": statistics.median(local) * 1000,
        "offloaded_ms": statistics.median(remote) * 1000,
        "added_ms": statistics.median(b - a for a, b in zip(local, remote, strict=True)) * 1000,
    }


def loop_cost(bundle: Bundle, address: str, images: list[NDArray[np.uint8]]) -> dict[str, float]:
    """The device's loop where every image exits early, beside the bare head."""
    from offramp.device.device import Device

    engine = Engine(bundle)
    shares = []
    heads = []
    with Device(bundle, server=address, threshold=0.0) as device:
        for _ in range(ROUNDS):
            start = time.thread_time()
            for image in images:
                engine.head(image[None])
            middle = time.thread_time()
            for image in images:
                device.infer(image)
            end = time.thread_time()
            heads.append((middle - start) / len(images))
            shares.append((middle - start) / (end - middle))
    return {"head_us": statistics.median(heads) * 1e6, "loop_over_head": statistics.median(shares)}


def photo_cost(bundle: Bundle) -> dict[str, float]:
    """What a 12-megapixel JPEG takes before the head, and the head: milliseconds, medians."""
    from PIL import Image

    from offramp.device import preprocess

    noise = np.random.default_rng(0).integers(0, 256, (PHOTO[1] // 40, PHOTO[0] // 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(PHOTO).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    engine = Engine(bundle)
    decoding, heads = [], []
    for number in range(2 * ROUNDS + 1):
        start = time.perf_counter()
        image = preprocess(data, bundle)
        middle = time.perf_counter()
        engine.head(image[None])
        if number:  # the first round warms up
            decoding.append(middle - start)
            heads.append(time.perf_counter() - middle)
    return {
        "bytes": len(data),
        "decode_ms": statistics.median(decoding) * 1000,
        "head_ms": statistics.median(heads) * 1000,
    }


def report(result: dict[str, Any]) -> None:
    """Print it."""
    surroundings = result["environment"]
    print(f"{surroundings['cpu']}, {surroundings['cores']} cores, load {surroundings['load_average'][0]}\n")
    print("Bytes for each offloaded image, TCP payload of the connection; TCP/IP headers are an estimate")
    print(
        f"{'coalesce ms':>11} {'payload':>8} {'sent':>7} {'received':>9} {'both/payload':>13} "
        f"{'TCP/IP':>7} {'median ms':>10} {'answered':>9}"
    )
    for row in result["envelope"]:
        if "sent_bytes" not in row:
            print(f"{row['coalesce_ms']:>11g} {row['payload_bytes']:>8}  not known on this system")
            continue
        print(
            f"{row['coalesce_ms']:>11g} {row['payload_bytes']:>8} {row['sent_bytes']:>7.1f} "
            f"{row['received_bytes']:>9.1f} {row['wire_over_payload']:>13.2f} "
            f"{row['tcp_ip_header_bytes']:>7.1f} {row['latency_ms_median']:>10.1f} "
            f"{row['answered']:>5}/{row['images']}"
        )
    cost = result["offload"]
    print(
        f"\nhead and tail in one process {cost['head_and_tail_ms']:.2f} ms, "
        f"offloaded {cost['offloaded_ms']:.2f} ms: {cost['added_ms']:.2f} ms more"
    )
    loop = result["loop"]
    print(f"loop with all images exiting early: {loop['loop_over_head']:.2f} of the bare head's throughput")
    photo = result["photo"]
    print(
        f"JPEG of 12 megapixels, {photo['bytes']:,} B: decoded in {photo['decode_ms']:.1f} ms, "
        f"head {photo['head_ms']:.2f} ms"
    )
