"""What a payload takes in its message."""

from offramp.bench.messages import framed_bytes


def test_a_message_is_its_payload_and_the_frames_six_bytes() -> None:
    assert [framed_bytes(size) - size for size in (1, 100, 123, 124, 20_000)] == [6, 6, 6, 7, 8]
