"""Fuzz the datagrams' parsers, the pieces and the gateway's checks:

python -m tests.fuzz.datagrams SECONDS [SEED]

Valid datagrams are damaged, cut, joined and sent in pieces of any order, to a gateway with keys and to one
without. What must hold for each: nothing is raised but a ``PeerError`` of one line; nothing passes a gateway
that a device did not write, but for what has a right checksum; what waits stays bounded.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable

from offramp.common.errors import PeerError
from offramp.common.wire.borders import CobsReader, LengthReader, to_cobs
from offramp.common.wire.datagram import Reply, crc24, kind_of, read_head, reply_sequence
from offramp.common.wire.fragments import fragment
from tests.gateway.fakes import DATAGRAMS, DIGEST, Desk, Device, key_of

PLAIN = [DATAGRAMS.request(number, 0, bytes([number] * size)) for number, size in ((1, 1), (2, 60), (3, 300))]
SEALED = [
    DATAGRAMS.request(number, 0, bytes([number] * size), 1, key_of(1)) for number, size in ((1, 1), (2, 60))
]
REPLIES = [DATAGRAMS.reply(Reply(1, 3, 0.5)), DATAGRAMS.reply(Reply(1, 3, 0.5), 1, key_of(1))]
SEEDS = [*PLAIN, *SEALED, *REPLIES, b""]


def damaged(rng: random.Random) -> bytes:
    """A datagram that no device wrote, most probably."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            data += rng.choice(SEEDS)
        elif kind == 4 and data:
            data[0] = rng.randrange(256)
        elif data:
            del data[place % len(data)]
    return bytes(data)


def parsers(data: bytes) -> None:
    """Each ends with a value or one line."""
    readers: list[Callable[[], object]] = [
        lambda: kind_of(data),
        lambda: read_head(data),
        lambda: reply_sequence(data),
        lambda: DATAGRAMS.read_request(data),
        lambda: DATAGRAMS.read_request(data, key_of(1)),
        lambda: DATAGRAMS.read_reply(data),
        lambda: DATAGRAMS.read_reply(data, 1, 1, key_of(1)),
    ]
    for read in readers:
        try:
            read()
        except PeerError as error:
            assert "\n" not in str(error)
    CobsReader().feed(data)
    LengthReader().feed(data)
    assert CobsReader().feed(b"\0" + to_cobs(data)) == [data]


def may_pass(data: bytes, sealed: bool) -> bool:
    """Whether a gateway may take this for a request."""
    if sealed:
        return data in SEALED
    return data in PLAIN or (len(data) > 8 and crc24(DIGEST + data[:-3]) == int.from_bytes(data[-3:], "big"))


def fuzz(seconds: float, seed: int, most: int = 1 << 62) -> int:
    """Run for so long, or so many cases; how many there were. Raises AssertionError for a finding."""
    rng, cases, end = random.Random(seed), 0, time.monotonic() + seconds
    while cases < most and time.monotonic() < end:
        for sealed in (False, True):
            desk, device = Desk((1,) if sealed else None), Device()
            allowed = 0
            for _ in range(250):
                data = damaged(rng)
                parsers(data)
                pieces = [data]
                if len(data) > 12 and rng.random() < 0.3:
                    pieces = fragment(data, rng.randint(12, 60), rng.randrange(4))
                    rng.shuffle(pieces)
                    pieces = pieces[: rng.randint(1, len(pieces))] * rng.randint(1, 2)
                allowed += len(pieces) == 1 and may_pass(data, sealed)
                for piece in pieces:
                    desk.gateway.take(device.sender, piece)
                cases += 1
            # What was put together of pieces may be a device's, if all of them came.
            desk.close()
            bodies = {one[5:-3] for one in PLAIN} if not sealed else {b"\1", bytes([2] * 60)}
            strange = [one for one in desk.link.seen if one not in bodies]
            assert len(strange) <= allowed, f"seed {seed}, case {cases}: {strange[0].hex()} passed"
            assert desk.gateway._assembler.waiting_bytes <= 4 << 20
    return cases


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    start = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    print(f"seed {start}: {fuzz(float(sys.argv[1]), start):,} cases, nothing found")
