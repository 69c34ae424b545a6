"""The rival's device, which sends pictures, raw activations or nothing.

``python -m research.links.rival_device`` reads paths on standard input, prints a JSON object for each, as
``edge-device --json -`` does, and sends over the same link, in the same frames. Only benchmarks start it.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.codec.activation import CodecId
from offramp.common.inputs.pictures import to_input
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine
from offramp.common.wire.transport import set_grpc_environment

WAIT = 120.0
"""Seconds that an answer is waited for: a slow link is to be measured, not given up."""
FORMATS: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WEBP": {"method": 6}}
"""How each format is written as small as it gets."""


def encode_picture(picture: Image.Image, kind: str, quality: int) -> bytes:
    """A picture in its own colour mode as a file."""
    file = io.BytesIO()
    picture.save(file, kind, quality=quality, **FORMATS[kind])
    return file.getvalue()


def open_picture(path: Path | str) -> Image.Image:
    """A picture, read whole."""
    with Image.open(path) as picture:
        picture.load()
        return picture.copy()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    set_grpc_environment()
    parser = Parser("rival_device", description="Send pictures or raw activations, or nothing.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--server", metavar="HOST:PORT", default="127.0.0.1:1")
    parser.add_argument("--send", choices=["JPEG", "WEBP", "raw", "nothing"], required=True)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--threshold", type=float, help="T_c of an early exit before it (default: none)")
    arguments = parser.parse_args(argv)
    from offramp.device.metrics import DeviceMetrics
    from offramp.link.link import Answer, Link, Outcome, Pace, Terms

    bundle = load_bundle(arguments.bundle)
    engine = Engine(bundle)
    engine.load_head()
    engine.load_tail()
    link = Link(
        [arguments.server],
        Terms(bundle.digest, len(bundle.manifest.classes), bundle.codec.raw_bytes),
        Pace(WAIT, window=1),
        DeviceMetrics(bundle).link,
    )
    for line in sys.stdin:
        path = line.strip()
        picture = open_picture(path)
        pixels = to_input(picture, bundle.manifest.preprocessing)
        start = time.perf_counter()
        payload = b""
        best, source = -1, "server"
        if arguments.send in ("raw", "nothing") or arguments.threshold is not None:
            symbols, probabilities = engine.head(pixels[None])
            if arguments.send == "nothing":
                best, source = int(engine.tail(symbols)[0].argmax()), "device"
            elif arguments.threshold is not None and probabilities.max() > arguments.threshold:
                best, source = int(probabilities[0].argmax()), "early_exit"
            elif arguments.send == "raw":
                payload = symbols.tobytes()
        if best < 0:
            if arguments.send != "raw":
                payload = encode_picture(picture, arguments.send, arguments.quality)
            outcomes: list[Outcome] = []
            done = threading.Event()

            def tell(outcome: Outcome, to: list[Outcome] = outcomes, ready: threading.Event = done) -> None:
                to.append(outcome)
                ready.set()

            link.offload(CodecId.RAW if arguments.send == "raw" else CodecId.BUNDLE, payload, tell)
            done.wait()
            answer = outcomes[0]
            if isinstance(answer, Answer):
                best = answer.class_index
                if arguments.threshold is not None:
                    told = Replies(np.array([best]), np.array([answer.probability], np.float32))
                    (best,) = told.answers(probabilities, bundle.manifest.sent_answer).tolist()
            else:
                print(f"rival_device: {path}: {answer.reason}", file=sys.stderr)
                source = "fallback"
        record = {
            "image": path,
            "label": bundle.manifest.classes[best] if best >= 0 else None,
            "source": source,
            "latency_seconds": time.perf_counter() - start,
            "payload_bytes": len(payload),
        }
        print(json.dumps(record), flush=True)
    link.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
