"""A TCP proxy that passes everything on a fixed time later: ``python -m offramp.evaluation.delay_proxy``.

Order is kept, and the time between two chunks. It holds at most ``HELD`` chunks of each direction; then it
reads no more, and TCP does the rest.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

from offramp.common.config import Parser, split_address

CHUNK = 65_536
HELD = 1_024


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on one direction until its end, each chunk ``delay`` seconds after it was read."""
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
            await held.put((clock() + delay, data))
            if not data:
                break
        await sending
    finally:
        sending.cancel()


async def serve(host: str, port: int, target: tuple[str, int], delay: float) -> None:
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
            await asyncio.gather(forward(reader, far_writer, delay), forward(far_reader, writer, delay))
        except OSError:
            pass  # one side is gone: the other is told so
        finally:
            for each in writers:
                each.close()

    server = await asyncio.start_server(handle, host, port)
    address = server.sockets[0].getsockname()
    print(f"listening on {address[0]}:{address[1]}", file=sys.stderr, flush=True)
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
    arguments = parser.parse_args(argv)
    host, port = split_address("--listen", arguments.listen)
    asyncio.run(serve(host, port, split_address("--target", arguments.target), arguments.delay))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
