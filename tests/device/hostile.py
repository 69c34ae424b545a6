"""Servers that break the protocol: each a script that is run for every stream that a device opens."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import grpc

from offramp.common.wire import transport
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT

Requests = Iterator[bytes]
Context = grpc.ServicerContext
Script = Callable[[Requests, Context], Iterator[bytes]]

GARBAGE = b"\xff" * 20


@dataclass
class Hostile:
    """A server and how many streams were opened to it."""

    port: int
    streams: int = 0
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hostile(script: Script) -> Iterator[Hostile]:
    """Serve this script on a free port."""
    state = Hostile(0)

    def offload(requests: Requests, context: Context) -> Iterator[bytes]:
        state.streams += 1
        yield from script(requests, context)

    method: Any = grpc.stream_stream_rpc_method_handler(offload)
    pool = ThreadPoolExecutor(32)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(transport.SERVICE, {"Offload": method}),)
    )
    state.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield state
    finally:
        server.stop(0).wait(WAIT)
        pool.shutdown()


def hold(context: Context) -> None:
    """Do nothing until the device ends the stream."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(WAIT)


def accepted(frames_in_flight: int = 64, message_bytes: int = 16_384, frames_per_message: int = 64) -> bytes:
    """A first message; 0 is as good as a limit that is not there."""
    limits = pb.Limits(
        frames_in_flight=frames_in_flight, message_bytes=message_bytes, frames_per_message=frames_per_message
    )
    return pb.ServerMessage(accepted=pb.Accepted(limits=limits)).SerializeToString()


def replies(*answers: pb.Reply) -> bytes:
    """A message with these replies."""
    return pb.ServerMessage(replies=answers).SerializeToString()


def reply(sequence: int, class_index: int = 1, probability: float = 0.75) -> bytes:
    """A message with one answer."""
    return replies(pb.Reply(sequence=sequence, class_index=class_index, probability=probability))


def draining() -> bytes:
    """The notice that no further frame is read."""
    return pb.ServerMessage(draining=pb.Draining()).SerializeToString()


def sequences(requests: Requests) -> Iterator[int]:
    """The sequence number of each frame after the hello."""
    following = 1
    for data in requests:
        message = pb.DeviceMessage.FromString(data)
        following = message.first_sequence or following
        for _ in message.frames:
            yield following
            following += 1


def first_messages(*messages: bytes) -> Script:
    """These in answer to the hello, then silence."""

    def script(requests: Requests, context: Context) -> Iterator[bytes]:
        next(requests)
        yield from messages
        hold(context)

    return script


def answering(*messages: bytes) -> Script:
    """Accepts; these in answer to the first frame, then silence."""

    def script(requests: Requests, context: Context) -> Iterator[bytes]:
        next(requests)
        yield accepted()
        next(requests)
        yield from messages
        hold(context)

    return script


def answering_each(answer: Callable[[int], list[bytes]]) -> Script:
    """Accepts; these in answer to each frame."""

    def script(requests: Requests, _: Context) -> Iterator[bytes]:
        next(requests)
        yield accepted()
        for sequence in sequences(requests):
            yield from answer(sequence)

    return script


def echo() -> Script:
    """Answers each frame."""
    return answering_each(lambda sequence: [reply(sequence)])


def errors(*reasons: pb.FrameError.Reason, retry_after_ms: int = 0) -> Script:
    """Refuses each frame for the next of these reasons; answers once there are no more."""
    left = list(reasons)

    def answer(sequence: int) -> list[bytes]:
        if not left:
            return [reply(sequence)]
        error = pb.FrameError(reason=left.pop(0), message="no", retry_after_ms=retry_after_ms)
        return [replies(pb.Reply(sequence=sequence, error=error))]

    return answering_each(answer)


STEPS = ("before the hello", "after the hello", "after accepting", "after a frame", "after a reply")


def leaving(step: str, status: grpc.StatusCode | None, said: str = transport.SAID) -> Script:
    """Ends the stream at this step: with a status, or None as if all were well. said: begins its detail."""

    def script(requests: Requests, context: Context) -> Iterator[bytes]:
        def leave(here: str) -> bool:
            if here == step and status is not None:
                context.abort(status, f"{said}left {here}\r\nTraceback: \x1b[31mnone")
            return here == step

        if leave(STEPS[0]):
            return
        next(requests)
        if leave(STEPS[1]):
            return
        yield accepted()
        if leave(STEPS[2]):
            return
        for sequence in sequences(requests):
            if leave(STEPS[3]):
                return
            yield reply(sequence)
            if leave(STEPS[4]):
                return

    return script


def draining_forever(requests: Requests, _context: Context) -> Iterator[bytes]:
    """Accepts each stream, and drains it before it reads a frame."""
    next(requests)
    yield accepted()
    yield draining()
    for _ in requests:
        pass


def draining_silently(requests: Requests, context: Context) -> Iterator[bytes]:
    """Says that it drains, and then never ends the stream."""
    next(requests)
    yield accepted()
    yield draining()
    hold(context)


def chatting(requests: Requests, _context: Context) -> Iterator[bytes]:
    """Accepts, reads everything and sends empty messages, never a reply."""
    next(requests)
    yield accepted()
    for _ in sequences(requests):
        for _ in range(10):
            yield b""


def draining_again_and_again(requests: Requests, context: Context) -> Iterator[bytes]:
    """Says ten times a second that it drains, and answers nothing."""
    next(requests)
    yield accepted()
    while context.is_active():
        yield draining()
        time.sleep(0.1)


def flooding(message: bytes, after: int = 0) -> Script:
    """Answers so many frames, then sends this as fast as the device takes it."""

    def script(requests: Requests, context: Context) -> Iterator[bytes]:
        next(requests)
        yield accepted()
        for sequence in islice(sequences(requests), after):
            yield reply(sequence)
        while context.is_active():
            yield message

    return script


def breaking_after_accepting(requests: Requests, context: Context) -> Iterator[bytes]:
    """Accepts each stream, and ends it at once with an error."""
    next(requests)
    yield accepted()
    context.abort(grpc.StatusCode.INTERNAL, "RST_STREAM closed stream")


BREAKERS: list[tuple[str, Script, str]] = [
    ("never accepts", first_messages(), "did not accept the stream within"),
    ("garbage for accepted", first_messages(GARBAGE), "not an offramp.v1.ServerMessage"),
    ("empty first message", first_messages(b""), "answered hello with something else"),
    ("replies before accepting", first_messages(reply(1)), "answered hello with something else"),
    ("drains before accepting", first_messages(draining()), "answered hello with something else"),
    ("accepts without limits", first_messages(accepted(0, 0, 0)), "allows 0"),
    ("no frames in flight", first_messages(accepted(frames_in_flight=0)), "allows 0 frames in flight"),
    ("no frames a message", first_messages(accepted(frames_per_message=0)), "in flight, 0 a message"),
    ("messages of one byte", first_messages(accepted(message_bytes=1)), "and 1 bytes a message"),
    ("accepts twice", first_messages(accepted(), accepted()), "accepted one stream twice"),
    ("silent after accepting", first_messages(accepted()), "silent for"),
    ("garbage reply", answering(GARBAGE), "not an offramp.v1.ServerMessage"),
    ("unknown sequence number", answering(reply(999)), "answered frame 999, which was never sent"),
    ("sequence number 0", answering(reply(0)), "answered frame 0, which was never sent"),
    ("largest sequence number", answering(reply(2**64 - 1)), "which was never sent"),
    ("class out of range", answering(reply(1, class_index=3)), "answered class 3"),
    ("largest class", answering(reply(1, class_index=2**32 - 1)), "answered class 4294967295"),
    ("NaN probability", answering(reply(1, probability=math.nan)), "with probability nan"),
    ("infinite probability", answering(reply(1, probability=math.inf)), "with probability inf"),
    ("negative probability", answering(reply(1, probability=-0.5)), "with probability -0.5"),
    ("probability above 1", answering(reply(1, probability=1.5)), "with probability 1.5"),
    ("oversized reply", answering(replies(*[pb.Reply(sequence=1)] * 40_000)), "larger than max"),
    ("drains and is silent", draining_silently, "did not end the stream within"),
    ("drains again and again", draining_again_and_again, "did not end the stream within"),
    ("empty messages without end", flooding(b""), "sends messages without end"),
    ("draining without end", flooding(draining()), "sends messages without end"),
]  # fmt: skip
"""Name, script, and what the device says of it."""


def breaking_at_the_second(requests: Requests, context: Context) -> Iterator[bytes]:
    """Answers one frame, and breaks the stream at the next."""
    next(requests)
    yield accepted()
    numbers = sequences(requests)
    yield reply(next(numbers))
    next(numbers)
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
