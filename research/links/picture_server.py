"""The rival's server: pictures in, the whole model here. ``python -m research.links.picture_server``.

It is ``cloud-server``'s own service, batcher and wire, with two things exchanged: a frame's payload is a
picture file of any size, JPEG or WebP, and what runs is always the whole model. Only benchmarks start it.
"""

from __future__ import annotations

import asyncio
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.common import cpus
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.codec.activation import ActivationCodec
from offramp.common.errors import PayloadError
from offramp.common.inputs.pictures import to_input
from offramp.common.settings import Parser, ServerSettings, split_address
from offramp.common.wire.address import join_address
from offramp.common.wire.transport import set_grpc_environment

BATCH = 32


class PictureCodec:
    """In the place of a bundle's codec: a picture file to the model's input."""

    def __init__(self, bundle: Bundle) -> None:
        self._preprocessing = bundle.manifest.preprocessing

    def decode(self, codec: int, payload: bytes) -> NDArray[np.uint8]:
        """A JPEG or WebP file → uint8 [3, H, W]. Raises PayloadError."""
        try:
            with Image.open(io.BytesIO(payload), formats=("JPEG", "WEBP")) as picture:
                return to_input(picture, self._preprocessing)
        except Exception as error:  # Pillow has no common base class for its errors
            raise PayloadError(f"is no JPEG or WebP picture ({type(error).__name__})") from None


async def serve(bundle: Bundle, listen: str, threads: int) -> None:
    """Serve until SIGTERM; says on stderr where it listens."""
    import grpc.aio

    from offramp.common.wire import transport
    from offramp.server.batch import Batcher, Shape
    from offramp.server.catalog import Catalog, Loaded
    from offramp.server.limits import StreamLimits
    from offramp.server.metrics import ServerMetrics
    from offramp.server.plan import make_plan
    from offramp.server.service import InferenceService, handlers
    from offramp.server.whole import WholeModel

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = ServerSettings.model_validate({"bundle": ("here",)})
    metrics = ServerMetrics()
    batcher = Batcher(metrics, 1, settings.queue)
    catalog = Catalog(batcher, metrics)
    plan, engine = make_plan(bundle, threads, workers=1, max_batch=BATCH, max_wait=0.0)
    engine.load_head()
    served = catalog.add(Loaded(bundle, engine, plan))
    served.codec = cast(ActivationCodec, PictureCodec(bundle))
    served.lane = batcher.add(WholeModel(engine), Shape(BATCH, 0.0, 0.0))
    served.decode_inline = True
    image = bundle.manifest.preprocessing
    served.message_bytes = max(served.message_bytes, 4 * image.height * image.width)
    service = InferenceService(
        catalog,
        batcher,
        metrics,
        StreamLimits.of(settings),
    )
    server = grpc.aio.server(options=transport.server_options(served.message_bytes, settings.max_streams))
    server.add_generic_rpc_handlers((handlers(service.offload, service.describe),))
    host, _ = split_address("--listen", listen)
    port = server.add_insecure_port(listen)
    await server.start()
    print(f"listening on {join_address(host, port)}", file=sys.stderr, flush=True)
    await stop.wait()
    service.drain()
    await server.stop(1.0)
    batcher.close()
    service.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    set_grpc_environment()
    parser = Parser("picture_server", description="Classify pictures with a bundle's head and tail.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--threads", type=int, default=cpus.available())
    arguments = parser.parse_args(argv)
    import uvloop

    # As cloud-server does.
    uvloop.run(serve(load_bundle(arguments.bundle), arguments.listen, arguments.threads))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
