"""The load of the server's benchmark: numbering, and what counts as answered in time."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from offramp.bench.load import Arrivals, Messages
from offramp.common.wire import frame
from offramp.v1 import inference_pb2 as pb


def test_goodput_counts_what_is_answered_in_time_and_before_the_end() -> None:
    arrivals = Arrivals(10.0, 4.0)
    arrivals.due = [-1.0, -1.0, 0.0, 1.0, 1.0, 3.5]
    arrivals.latency = [0.5, 1.5, 0.1, 2.5, 1.9, 1.0]
    # Before the start, within it though due before, in time, too late, in time, after the end.
    assert arrivals.goodput(2.0) == 3 / 4


def test_messages_number_their_frames_without_a_gap() -> None:
    messages = Messages([(0, b"a"), (1, b"bb"), (0, b"ccc")], 2)
    reader = frame.FrameReader(64)
    late = messages[2]
    read = [reader.read(frame.parse(pb.DeviceMessage, messages[index])) for index in range(3)]

    assert messages[2] is late
    assert [
        [(f.sequence, f.codec, f.payload) for f in each if isinstance(f, frame.Frame)] for each in read
    ] == [
        [(1, 0, b"a"), (2, 1, b"bb")],
        [(3, 0, b"ccc"), (4, 0, b"a")],
        [(5, 1, b"bb"), (6, 0, b"ccc")],
    ]
