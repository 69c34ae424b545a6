"""A TCP proxy that passes everything on a fixed time later: ``python -m research.links.delay_proxy``.

Order is kept, and the time between two chunks. It holds at most ``HELD`` chunks of each direction; then it
reads no more, and TCP does the rest.

With a rate, bytes also take their time on a line: one for each direction, which all connections share. A
token bucket lets a first frame pass an idle link at once, where a real one would still be sending it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

from offramp.common.arguments import Parser
from offramp.common.wire.address import join_address, split_address

CHUNK = 65_536
HELD = 1_024
SEGMENT, HEADERS = 1_448, 66
"""Bytes of TCP payload in an Ethernet frame, and of its headers: Ethernet, IP, and TCP with timestamps."""


class Line:
    """One direction of a link, that sends one chunk after the other.

    Args:
        delay: seconds from one end to the other.
        rate: bits a second, of frames with their headers; None: any.
    """

    def __init__(self, delay: float, rate: float | None) -> None:
        self._delay, self._rate = delay, rate
        self._free = 0.0

    def arrival(self, size: int, now: float) -> float:
        """When the last of ``size`` bytes, handed over ``now``, is at the other end."""
        if self._rate is None:
            return now + self._delay
        frames = -(-size // SEGMENT)
        self._free = max(self._free, now) + (size + frames * HEADERS) * 8 / self._rate
        return self._free + self._delay


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
    """Pass on one direction until its end, each chunk when it has come over the line."""
    clock = asyncio.get_running_loop().time
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD)

    async def send() -> None:
        while True:
            due, data = await held.get()
            await asyncio.sleep(due - clock())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        while not sending.done():
            data = await reader.read(CHUNK)
            await held.put((line.arrival(len(data), clock()), data))
            if not data:
                break
        await sending
    finally:
        sending.cancel()


async def serve(host: str, port: int, target: tuple[str, int], lines: tuple[Line, Line]) -> None:
    """Serve until SIGTERM; says on stderr where it listens."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
            writers.append(far_writer)
            for each in writers:
                each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(forward(reader, far_writer, lines[0]), forward(far_reader, writer, lines[1]))
        except OSError:
            pass  # one side is gone: so the other one is closed
        finally:
            for each in writers:
                each.close()

    server = await asyncio.start_server(handle, host, port)
    address = server.sockets[0].getsockname()
    print(f"listening on {join_address(*address[:2])}", file=sys.stderr, flush=True)
    await stop.wait()
    server.close()
    # What is still open goes with the process.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    parser = Parser("delay_proxy", description="Pass TCP on, later.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--delay", type=float, required=True, metavar="SECONDS", help="of each direction")
    parser.add_argument(
        "--rate", type=float, metavar="BITS", help="a second, of each direction (default: any)"
    )
    arguments = parser.parse_args(argv)
    host, port = split_address("--listen", arguments.listen)
    there, back = (Line(arguments.delay, arguments.rate) for _ in range(2))
    asyncio.run(serve(host, port, split_address("--target", arguments.target), (there, back)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
