"""Each hostile message gets its one answer from the functions that the server is made of."""

from __future__ import annotations

import re

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import OfframpError
from offramp.common.wire import transport
from offramp.common.wire.frame import BadFrame, Frame, FrameReader, check_hello, parse, reason_name, refusal
from offramp.v1 import inference_pb2 as pb
from tests.attacks.frames import Aborted, FrameAttack, Refused, attacks, good_frame, message, sealed


class Stream:
    """A server's side of one stream, without the network and the tail."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._reader: FrameReader | None = None

    def receive(self, data: bytes) -> list[pb.Reply]:
        """Replies to one message. An answer that the tail would give is an empty one."""
        parsed = parse(pb.DeviceMessage, data)
        if self._reader is None:
            check_hello(parsed, self._bundle.digest)
            self._reader = FrameReader(transport.FRAMES_PER_MESSAGE)
            return []
        return [self._answer(found) for found in self._reader.read(parsed)]

    def _answer(self, found: Frame | BadFrame) -> pb.Reply:
        try:
            if isinstance(found, BadFrame):
                raise found.error
            self._bundle.codec.decode(found.codec, found.payload)
        except OfframpError as error:
            return refusal(found.sequence, error)
        return pb.Reply(sequence=found.sequence)


# The table needs the bundle's digest, so a case is named by its place in it.
TABLE_SIZE = 48


@pytest.fixture(scope="module")
def table(toy_bundle: Bundle) -> list[FrameAttack]:
    found = attacks(toy_bundle)
    assert len(found) == TABLE_SIZE
    return found


def test_numbers_and_names_are_unique(table: list[FrameAttack]) -> None:
    assert [attack.number for attack in table] == list(range(1, len(table) + 1))
    assert len({attack.name for attack in table}) == len(table)


@pytest.mark.parametrize("index", range(TABLE_SIZE), ids=lambda index: f"{index + 1:03}")
def test_outcome(index: int, table: list[FrameAttack], toy_bundle: Bundle) -> None:
    attack, stream = table[index], Stream(toy_bundle)
    *before, last = attack.messages
    for good in before:
        assert not any(reply.HasField("error") for reply in stream.receive(good)), attack.id

    limit = transport.message_bytes(toy_bundle.codec.raw_bytes)
    assert all(len(good) <= limit for good in before)
    if attack.name.endswith("over-the-size-limit"):
        assert len(last) > limit
        return
    assert len(last) <= limit
    if isinstance(attack.outcome, Aborted):
        with pytest.raises(OfframpError) as caught:
            stream.receive(last)
        assert re.fullmatch(attack.outcome.message, str(caught.value)), attack.id
        assert caught.value.grpc_status == attack.outcome.status
        assert str(caught.value).isprintable()
    else:
        refused(attack.outcome, stream.receive(last), attack.id)
        following = attack.outcome.next_sequence
        good_message = message(sealed(following, good_frame(toy_bundle, following).payload))
        assert stream.receive(good_message) == [pb.Reply(sequence=following)]


def refused(outcome: Refused, replies: list[pb.Reply], name: str) -> None:
    assert tuple(reply.sequence for reply in replies) == outcome.sequences, name
    for reply in replies:
        assert reason_name(reply.error.reason) == outcome.reason, name
        assert re.fullmatch(outcome.message, reply.error.message), (name, reply.error.message)
        assert reply.error.message.isprintable()
