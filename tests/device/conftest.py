"""Fixtures of the device's tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.wire import transport
from offramp.link.backoff import BACKOFF_FIRST
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.certificates import Pair
from tests.device import hostile
from tests.device.linked import Linked, LinkTo
from tests.processes import WAIT, Processes, processes


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Starts programs on the toy bundle; they end with the test."""
    with processes(toy_bundle.path) as started:
        yield started


@pytest.fixture(scope="session")
def toy_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``.npz`` with 300 images; only read it."""
    path = tmp_path_factory.mktemp("npz") / "images.npz"
    np.savez_compressed(path, images=toy.images(300, seed=3).transpose(0, 2, 3, 1))
    return path


@dataclass
class Secured:
    """A server of a test, how many streams it let in, and where it is."""

    port: int = 0
    streams: int = 0


@contextmanager
def secured(
    pair: Pair | None, *, client_ca: Path | None = None, token: str | None = None
) -> Iterator[Secured]:
    """A small ``grpc.aio`` server that answers each frame, behind TLS, mutual TLS or a token."""
    state = Secured()

    async def offload(_: object, context: Any) -> None:
        shown = dict(context.invocation_metadata()).get(transport.AUTHORIZATION)
        if token is not None and shown != f"Bearer {token}":
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, f"{transport.SAID}no token that is known here"
            )
        await context.read()
        state.streams += 1
        await context.write(hostile.accepted())
        number = 0
        while (data := await context.read()) is not grpc.aio.EOF:
            message = pb.DeviceMessage.FromString(data)
            number = message.first_sequence - 1 if message.first_sequence else number
            for _ in message.frames:
                number += 1
                await context.write(hostile.reply(number))

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        methods: Any = {"Offload": grpc.stream_stream_rpc_method_handler(cast(Any, offload))}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(transport.SERVICE, methods),))
        if pair is None:
            state.port = server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials(
                [(pair.key.read_bytes(), pair.cert.read_bytes())],
                None if client_ca is None else client_ca.read_bytes(),
                client_ca is not None,
            )
            state.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(WAIT)
        yield state
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT)
        loop.close()


@pytest.fixture
def linked(toy_bundle: Bundle) -> LinkTo:
    """A link to some ports that ends with its block: threads gone, one outcome for each frame."""

    @contextmanager
    def make(*ports: int, timeout: float = WAIT, window: int = 16, **options: Any) -> Iterator[Linked]:
        made = Linked(toy_bundle, ports, timeout, window, **options)
        try:
            yield made
        finally:
            made.link.close()
        assert not any(thread.is_alive() for thread in made.link._threads)
        made.settled()
        # One attempt for each pause, and a few at once.
        pauses = (time.monotonic() - made.start) / (BACKOFF_FIRST / 2)
        assert made.sample("offramp_device_reconnects_total") <= 3 + pauses

    return make
