"""Load on a ``cloud-server``: streams of many devices, out of one event loop, with frames encoded before.

Every stream has a connection of its own. All of them send the same frames, which are numbered alike, so that
a message is packed once for all. What is left is gRPC itself, on the core of whoever calls this.

    closed loop   each stream keeps a number of frames under way: what the server can do at most
    open loop     frames come at random times (Poisson), whatever the server does; a frame's latency counts
                  from when it was due, so that a late generator makes it longer, not shorter
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from offramp.bench.processes import Program
from offramp.common.wire import frame, transport
from offramp.v1 import inference_pb2 as pb

SAMPLE_SECONDS = 0.25
"""How often the server's memory is looked at."""
SETTLE_SECONDS = 3.0
"""How long after the last frame was due its answers are waited for, at most."""


class Messages:
    """Packed messages of one stream, by their place in it.

    payloads: codec id and coded activation, repeated without end. per_message: frames in each.
    """

    def __init__(self, payloads: Sequence[tuple[int, bytes]], per_message: int) -> None:
        self.per_message = per_message
        self._payloads = payloads
        self._packed: list[bytes] = []
        self._writer = frame.FrameWriter()

    def __getitem__(self, index: int) -> bytes:
        while len(self._packed) <= index:
            first = len(self._packed) * self.per_message
            frames = [
                frame.Frame(number + 1, *self._payloads[number % len(self._payloads)])
                for number in range(first, first + self.per_message)
            ]
            self._packed.append(self._writer.pack(frames))
        return self._packed[index]


@dataclass(frozen=True)
class Rate:
    """What a closed loop found."""

    frames_per_second: float
    refused: int
    server_cpu_us: float
    """Processor time of the server for each answered frame, microseconds."""
    server_busy: float
    """Share of the time that the server's threads ran, summed over cores."""
    load_busy: float
    """The same of this process: near 1 the load is what is measured."""


@dataclass
class Arrivals:
    """What an open loop found. Times are seconds from the first second that counts."""

    rate: float
    """Frames offered a second: the target."""
    seconds: float
    due: list[float] = field(default_factory=list)
    """Of each answered frame: when it was due, below 0 in the seconds that do not count …"""
    latency: list[float] = field(default_factory=list)
    """… and how long after that its answer was here."""
    refused: int = 0
    """Frames that the server refused."""
    kept: int = 0
    """Frames that a device did not send, since its breaker was open or its window full."""
    lost: int = 0
    """Frames without a reply at the end."""
    resident: list[tuple[float, int]] = field(default_factory=list)
    """Time, and the server's resident bytes."""
    server_busy: float = 0.0
    load_busy: float = 0.0

    def goodput(self, deadline: float) -> float:
        """Frames a second that were answered within the deadline.

        By when they were answered: what a queue still holds at the end is no throughput.
        """
        good = 0
        for due, latency in zip(self.due, self.latency, strict=True):
            good += latency <= deadline and 0 <= due + latency < self.seconds
        return good / self.seconds


@asynccontextmanager
async def _opened(
    address: str, digest: bytes, deadline: float, segment: str = frame.TAIL_SEGMENT
) -> AsyncIterator[Any]:
    """One accepted stream on a connection of its own."""
    import grpc.aio

    async with grpc.aio.insecure_channel(address, options=transport.device_options()) as channel:
        call: Any = channel.stream_stream(transport.OFFLOAD)()
        await call.write(frame.hello(digest, int(deadline * 1e3), segment))
        await call.read()
        try:
            yield call
        finally:
            call.cancel()


async def closed_loop(
    server: Program,
    digest: bytes,
    messages: Messages,
    *,
    streams: int,
    depth: int,
    warm: float,
    seconds: float,
) -> Rate:
    """Throughput with ``depth`` messages under way on each stream; ``warm`` seconds before do not count."""
    answered = refused = 0
    opened, stop = asyncio.Semaphore(0), asyncio.Event()

    async def stream() -> None:
        nonlocal answered, refused
        async with _opened(server.address, digest, 0) as call:
            opened.release()
            for sent in range(depth):
                await call.write(messages[sent])
            sent, free = depth, 0
            while not stop.is_set():
                replies = pb.ServerMessage.FromString(await call.read()).replies
                failed = sum(reply.HasField("error") for reply in replies)
                refused += failed
                answered += len(replies) - failed
                free += len(replies)
                while free >= messages.per_message:
                    await call.write(messages[sent])
                    sent, free = sent + 1, free - messages.per_message

    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    for _ in tasks:
        await opened.acquire()
    await asyncio.sleep(warm)
    start, before, cpu, own = time.perf_counter(), answered, server.cpu_seconds(), time.process_time()
    await asyncio.sleep(seconds)
    took, count = time.perf_counter() - start, answered - before
    cpu, own = server.cpu_seconds() - cpu, time.process_time() - own
    stop.set()
    await _end(tasks)
    return Rate(count / took, refused, cpu / max(1, count) * 1e6, cpu / took, own / took)


async def open_loop(
    server: Program,
    digest: bytes,
    messages: Messages,
    *,
    streams: int,
    rate: float,
    warm: float,
    seconds: float,
    deadline: float,
    patient: bool,
    window: int = 16,
    segment: str = frame.TAIL_SEGMENT,
) -> Arrivals:
    """Offer ``rate`` frames a second, spread over all streams at random.

    Args:
        server: what is asked.
        digest: the bundle's.
        messages: of one frame each.
        streams: how many devices.
        rate: frames a second, of all of them together.
        warm: seconds that do not count; the load is on.
        seconds: seconds that count.
        deadline: seconds that a device waits for an answer.
        patient: devices have ``edge-device``'s breaker, which does as the server's retry hint says; else they
            send on whatever they are answered.
        window: unanswered frames of one device.
        segment: the part that is asked for.
    """
    devices = [
        _Device(server.address, digest, messages, deadline, patient, window, segment) for _ in range(streams)
    ]
    tasks = [asyncio.create_task(device.run()) for device in devices]
    for device in devices:
        await device.opened.wait()
    rng = Random(0)
    zero = time.perf_counter() + warm
    found = Arrivals(rate, seconds)
    cpu = own = sampled = 0.0
    due = time.perf_counter()
    while due < zero + seconds:
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(due - now)
        if now >= zero and not found.resident:
            cpu, own = server.cpu_seconds(), time.process_time()
        if now >= zero and now - sampled >= SAMPLE_SECONDS:
            found.resident.append((now - zero, server.resident_bytes()))
            sampled = now
        if not rng.choice(devices).offer(due) and due >= zero:
            found.kept += 1
        due += rng.expovariate(rate)
    found.resident.append((time.perf_counter() - zero, server.resident_bytes()))
    took = time.perf_counter() - zero
    found.server_busy = (server.cpu_seconds() - cpu) / took
    found.load_busy = (time.process_time() - own) / took
    end = time.perf_counter() + SETTLE_SECONDS
    while any(device.waiting for device in devices) and time.perf_counter() < end:
        await asyncio.sleep(0.05)
    for device in devices:
        for at, latency in device.answered:
            found.due.append(at - zero)
            found.latency.append(latency)
        found.refused += sum(at >= zero for at in device.refused)
        found.lost += sum(at >= zero for at in device.waiting.values())
    await _end(tasks)
    return found


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Device:
    """One device of an open loop."""

    def __init__(
        self,
        address: str,
        digest: bytes,
        messages: Messages,
        deadline: float,
        patient: bool,
        window: int,
        segment: str,
    ) -> None:
        from offramp.link.breaker import Breaker

        self.opened = asyncio.Event()
        self.waiting: dict[int, float] = {}
        """Sequence number of each unanswered frame, and when it was due."""
        self.answered: list[tuple[float, float]] = []
        self.refused: list[float] = []
        self._stream = address, digest, deadline, segment
        self._messages = messages
        self._window = window
        # edge-device's own default.
        self._breaker = Breaker(5) if patient else None
        self._probe = 0
        self._sent = 0
        self._outbox: deque[int] = deque()
        self._work = asyncio.Event()

    def offer(self, due: float) -> bool:
        """Send a frame that was due then; whether it is sent."""
        if len(self.waiting) >= self._window:
            return False
        if self._breaker is not None and not self._breaker.allows(time.perf_counter()):
            return False
        sequence = self._sent + 1
        if self._breaker is not None and self._breaker.take():
            self._probe = sequence
        self._outbox.append(self._sent)
        self._sent = sequence
        self.waiting[sequence] = due
        self._work.set()
        return True

    async def run(self) -> None:
        """Keep the stream up until cancelled."""
        async with _opened(*self._stream) as call:
            self.opened.set()
            writer = asyncio.create_task(self._write(call))
            try:
                while True:
                    now_read = await call.read()
                    now = time.perf_counter()
                    for reply in pb.ServerMessage.FromString(now_read).replies:
                        self._take(reply, now)
            finally:
                writer.cancel()

    async def _write(self, call: Any) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._outbox:
                await call.write(self._messages[self._outbox.popleft()])

    def _take(self, reply: pb.Reply, now: float) -> None:
        due = self.waiting.pop(reply.sequence)
        if not reply.HasField("error"):
            self.answered.append((due, now - due))
            if self._breaker is not None:
                self._breaker.success()
            return
        self.refused.append(due)
        if self._breaker is None:
            return
        if reply.error.retry_after_ms:
            self._breaker.hold(now, reply.error.retry_after_ms / 1e3, "overloaded")
        else:
            self._breaker.failure(now, "refused", reply.sequence == self._probe)
