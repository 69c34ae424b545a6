"""What a stream may hold, as counts."""

from __future__ import annotations

import pytest

from offramp.common.errors import MessageError, OverloadError
from offramp.server.account import BAD_FRAMES, REPLIES_WAITING, Account
from offramp.v1 import inference_pb2 as pb

FULL = "2 frames of this stream are unanswered, the most that may"


def test_no_more_frames_than_it_may() -> None:
    account = Account(2, strikes=1)
    account.take()
    account.take()
    with pytest.raises(OverloadError, match=FULL):
        account.take()
    assert account.unanswered == 2


def test_an_answer_makes_room_at_once_though_it_waits_to_be_written() -> None:
    account = Account(1, strikes=1)
    for count in range(1, 4):
        account.take()
        account.answer()
        assert (account.unanswered, account.replies) == (0, count)


def test_a_frame_that_is_refused_later_makes_room_too() -> None:
    account = Account(1, strikes=1)
    account.take()
    account.drop()
    account.refuse(pb.FrameError.REASON_EXPIRED)
    assert (account.unanswered, account.replies) == (0, 1)
    account.take()


def test_frames_that_were_cut_off_get_no_reply() -> None:
    account = Account(3, strikes=1)
    for _ in range(3):
        account.take()
    account.drop(2)
    assert (account.unanswered, account.replies) == (1, 0)


def test_each_frame_is_in_one_place() -> None:
    """What was taken, less what was written or dropped, is what the stream holds."""
    account = Account(4, strikes=100)
    written = refused = 0
    for step in range(60):
        try:
            account.take()
        except OverloadError:
            account.refuse(pb.FrameError.REASON_OVERLOADED)
            refused += 1
        if step % 3:
            account.answer()
        if step % 5 == 4:
            written += account.replies
            account.write(account.replies)
        assert account.unanswered + account.replies + written == step + 1
    assert refused > 0


@pytest.mark.parametrize("reason", pb.FrameError.Reason.values()[1:])
def test_only_what_a_correct_device_never_sends_is_a_strike(reason: pb.FrameError.Reason) -> None:
    account = Account(1, strikes=3)
    for _ in range(2):
        account.refuse(reason)
    account.check_strikes()
    account.refuse(reason)
    names = {"REASON_CHECKSUM", "REASON_SEQUENCE", "REASON_CODEC", "REASON_PAYLOAD"}
    bad = pb.FrameError.Reason.Name(reason) in names
    assert (reason in BAD_FRAMES) == bad and account.strikes == 3 * bad
    if bad:
        with pytest.raises(MessageError, match=r"^3 bad frames on this stream$"):
            account.check_strikes()
    else:
        account.check_strikes()


def test_it_is_read_no_further_while_too_many_replies_wait() -> None:
    account = Account(1, strikes=1)
    for _ in range(REPLIES_WAITING):
        account.take()
        account.answer()
    full = [account.is_full]
    account.refuse(pb.FrameError.REASON_OVERLOADED)
    full.append(account.is_full)
    account.write(1)
    full.append(account.is_full)
    assert full == [False, True, False]
