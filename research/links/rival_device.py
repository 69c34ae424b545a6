"""A device that does what ``edge-device`` does not: pictures without an activation before, or nothing coded.

``python -m research.links.rival_device`` reads paths on standard input and prints a JSON object for each, as
``edge-device --json -`` does. It sends over the same link, in the same frames, to a ``cloud-server
--pictures``. Only experiments start it.

    --send picture      a WebP picture to the whole model; with --threshold, of unsure images only
    --send activation   the INT8 activation, raw
    --send nothing      the whole model runs here
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.bench.labels import open_picture
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.codec.activation import CodecId
from offramp.common.inputs.pictures import to_input
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine
from offramp.common.wire.picture import encode_picture
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.metrics import DeviceMetrics
from offramp.link.link import Answer, Link, Outcome, Pace, Terms

WAIT = 120.0
"""Seconds that an answer is waited for: a slow link is to be measured, not given up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    set_grpc_environment()
    parser = Parser("rival_device", description="Send pictures or raw activations, or nothing.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--server", metavar="HOST:PORT", required=True)
    parser.add_argument("--send", choices=["picture", "activation", "nothing"], required=True)
    parser.add_argument("--quality", type=int, default=50, help="WebP's (default: 50)")
    parser.add_argument("--threshold", type=float, help="T_c of an early exit before it (default: no exit)")
    arguments = parser.parse_args(argv)
    bundle = load_bundle(arguments.bundle)
    engine = Engine(bundle)
    engine.load_head()
    engine.load_tail()
    link = Link(
        [arguments.server],
        Terms(
            bundle.digest,
            len(bundle.manifest.classes),
            bundle.codec.raw_bytes,
            pictures=arguments.send == "picture",
        ),
        Pace(WAIT, window=1),
        DeviceMetrics(bundle).link,
    )

    def classify(pixels: NDArray[np.uint8]) -> tuple[int | None, str, int]:
        """Class, source and payload bytes of one image; no class if nobody answers."""
        early = None
        payload, codec = b"", CodecId.PICTURE
        if arguments.send != "picture" or arguments.threshold is not None:
            symbols, early = engine.head(pixels[None])
            if arguments.send == "nothing":
                return int(engine.tail(symbols)[0].argmax()), "device", 0
            if arguments.threshold is not None and early.max() > arguments.threshold:
                return int(early[0].argmax()), "early_exit", 0
            payload, codec = symbols.tobytes(), CodecId.RAW
        if arguments.send == "picture":
            payload, codec = encode_picture(pixels, arguments.quality), CodecId.PICTURE
        answer = ask(link, codec, payload)
        if not isinstance(answer, Answer):
            print(f"rival_device: {answer.reason}", file=sys.stderr)
            return None, "fallback", len(payload)
        best = answer.class_index
        if arguments.threshold is not None and early is not None:
            replied = Replies(np.array([best]), np.array([answer.probability], np.float32))
            (best,) = replied.answers(early, bundle.manifest.sent_answer).tolist()
        return best, "server", len(payload)

    for line in sys.stdin:
        path = Path(line.strip())
        pixels = to_input(open_picture(path), bundle.manifest.preprocessing)
        start = time.perf_counter()
        best, source, sent = classify(pixels)
        record = {
            "image": str(path),
            "label": None if best is None else bundle.manifest.classes[best],
            "source": source,
            "latency_seconds": time.perf_counter() - start,
            "payload_bytes": sent,
        }
        print(json.dumps(record), flush=True)
    link.close()
    return 0


def ask(link: Link, codec: CodecId, payload: bytes) -> Outcome:
    """Send one frame and wait for its outcome."""
    outcomes: list[Outcome] = []
    settled = threading.Event()

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        settled.set()

    link.offload(codec, payload, done)
    settled.wait()
    return outcomes[0]


if __name__ == "__main__":
    raise SystemExit(main())
