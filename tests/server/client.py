"""A client that sends what it likes, message by message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.wire import frame, transport
from offramp.common.wire.frame import Frame, FrameWriter
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT


class Ended(Exception):
    """The stream ended with this status instead of a message."""

    def __init__(self, status: str, details: str) -> None:
        details = details.removeprefix(transport.SAID)
        super().__init__(f"{status}: {details}")
        self.status = status
        self.details = details


class Stream:
    """One Offload stream."""

    def __init__(
        self, channel: grpc.Channel, bundle: Bundle, metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._bundle = bundle
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        method: Any = channel.stream_stream(transport.OFFLOAD)
        self.call = method(iter(self._requests.get, None), timeout=WAIT, metadata=metadata)

    def send(self, message: bytes) -> None:
        """Send one serialized message."""
        self._requests.put(message)

    def half_close(self) -> None:
        """Send no more."""
        self._requests.put(None)

    def receive(self) -> pb.ServerMessage | None:
        """The next message; None where the server ended the stream in good order. Raises Ended."""
        try:
            return pb.ServerMessage.FromString(next(self.call))
        except StopIteration:
            return None
        except grpc.RpcError:
            raise Ended(self.call.code().name, self.call.details()) from None

    def hello(self) -> pb.Limits:
        """Open the stream as a device does; what the server allows."""
        self.send(frame.hello(self._bundle.digest))
        message = self.receive()
        assert message is not None and message.HasField("accepted") and not message.replies
        return message.accepted.limits

    def replies(self, count: int) -> list[pb.Reply]:
        """The next replies, of as many messages as it takes."""
        found: list[pb.Reply] = []
        while len(found) < count:
            message = self.receive()
            assert message is not None, f"{len(found)} of {count} replies"
            found += message.replies
        assert len(found) == count
        return found

    def replies_at_least(self, count: int) -> list[pb.Reply]:
        """The replies of as many messages as have this many together."""
        found: list[pb.Reply] = []
        while len(found) < count:
            message = self.receive()
            assert message is not None, f"{len(found)} of {count} replies"
            found += message.replies
        return found

    def end(self) -> list[pb.Reply]:
        """Half-close, and the replies until the server ends the stream in good order."""
        self.half_close()
        found: list[pb.Reply] = []
        while (message := self.receive()) is not None:
            found += message.replies
        return found


def good_frames(bundle: Bundle, count: int, first: int = 1) -> list[Frame]:
    """Frames that are answered."""
    activations = np.random.default_rng(first).integers(0, 3, (count, *bundle.codec.shape), np.uint8)
    coded = [bundle.codec.encode(activation) for activation in activations]
    return [Frame(first + i, codec, payload) for i, (codec, payload) in enumerate(coded)]


def good_message(bundle: Bundle, count: int = 1) -> bytes:
    """A stream's first message of frames."""
    return FrameWriter().pack(good_frames(bundle, count))


@contextmanager
def channel_to(address: str) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own."""
    with grpc.insecure_channel(address, options=transport.device_options()) as channel:
        yield channel


@contextmanager
def stream_to(address: str, bundle: Bundle, metadata: Sequence[tuple[str, str]] = ()) -> Iterator[Stream]:
    """One stream on a connection of its own; cancelled with the block."""
    with channel_to(address) as channel:
        stream = Stream(channel, bundle, metadata)
        try:
            yield stream
        finally:
            stream.half_close()
            stream.call.cancel()


def still_serves(address: str, bundle: Bundle) -> None:
    """A good device is answered."""
    with stream_to(address, bundle) as stream:
        stream.hello()
        stream.send(good_message(bundle, 3))
        # In the order of their batches.
        found = sorted((r.sequence, r.HasField("error")) for r in stream.replies(3))
        assert found == [(n, False) for n in (1, 2, 3)]
        assert stream.end() == []
