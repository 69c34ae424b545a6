"""One unsure input, from its early exit to the server's last word: a state machine without clock or socket.

    ACTIVATION ── answer, sure enough ───────────────────────▶ ANSWERED
        │    └─── answer, unsure ──▶ PICTURE ── any outcome ──▶ ANSWERED
        └──────── no answer ───────────────────────────────▶ FALLBACK ── late or spooled answer ──▶ CORRECTED

The activation is asked about first. An answer that is no more confident than the picture's threshold is asked
about once more, with a picture; whatever becomes of that, the image then has an answer of the server. Without
the first answer the early exit's stands, and the server may correct it later: by a reply that comes too late,
or by one to the activation that was kept in the spool, also in another run (``Inquiry.of_spooled``).

A frame that is sent again, because its stream broke, changes no state: the link gives it one outcome.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.common.part.answer import both_exits
from offramp.device.ledger import Cost
from offramp.device.result import Source
from offramp.link.outcome import Answer, Outcome


class State(Enum):
    """What one unsure input waits for, or how it ended."""

    ACTIVATION = auto()
    PICTURE = auto()
    ANSWERED = auto()
    FALLBACK = auto()
    CORRECTED = auto()


class Verdict(NamedTuple):
    """A class and its probability."""

    class_index: int
    confidence: float


# A frozen dataclass is as safe, and takes three times as long to make: this is on every image's way.
class Settled(NamedTuple):
    """The image has its result."""

    source: Source
    verdict: Verdict
    reason: str | None = None
    """Why the server did not answer."""
    keep: bool = False
    """Whether the activation is worth keeping: the same bytes may be answered later."""
    part: int = 1
    """Number of the part whose exit had the last word."""
    cut_short: bool = False
    """Whether that part was unsure, and the one behind it did not answer."""
    server: str = ""
    """HOST:PORT of the server that answered."""


class AskPicture:
    """The image is to be sent once more, as a picture: then ``picture_replied`` or ``picture_given_up``."""


ASK_PICTURE = AskPicture()

Step = Settled | AskPicture


class Inquiry:
    """What is known of one unsure input, and what to do next.

    own: the early exit's verdict; None where only a correction may follow. early: its probabilities, float32
    [classes] as bytes, where both exits answer together; else empty. picture_threshold: an answer no more
    confident than this is asked about with a picture; None: none is. For one thread at a time, but
    ``corrected`` may come beside the others.
    """

    __slots__ = ("_early", "_own", "_picture_threshold", "_server", "classes", "cost", "state")

    def __init__(
        self,
        own: Verdict | None,
        early: bytes,
        classes: int,
        *,
        picture_threshold: float | None = None,
        decode_seconds: float = 0.0,
    ) -> None:
        self.state = State.ACTIVATION
        self.classes = classes
        self.cost = Cost(decode_seconds=decode_seconds)
        self._own = own
        self._early = early
        self._picture_threshold = picture_threshold
        self._server: Settled | None = None
        """After the first answer: what stands where the picture gets none."""

    @classmethod
    def of_spooled(cls, early: bytes, classes: int) -> Inquiry:
        """A fallback whose activation was kept, maybe by an earlier run: only a correction may follow."""
        inquiry = cls(None, early, classes)
        inquiry.state = State.FALLBACK
        return inquiry

    def replied(self, size: int, outcome: Outcome, *, may_ask: bool) -> Step:
        """The activation's outcome. size: payload bytes. may_ask: whether the budget allows a picture."""
        self.cost.add_activation(size, outcome)
        if not isinstance(outcome, Answer):
            assert self._own is not None, "no activation is under way"
            # A late reply may have come just before its frame was given up.
            keep = self.state is not State.CORRECTED and not outcome.final
            self.state = State.FALLBACK if self.state is State.ACTIVATION else self.state
            return Settled("fallback", self._own, outcome.reason, keep)
        settled = self._settled(outcome)
        limit = self._picture_threshold
        if limit is not None and may_ask and settled.verdict.confidence <= limit:
            self.state = State.PICTURE
            self._server = settled
            return ASK_PICTURE
        self.state = State.ANSWERED
        return settled

    def picture_replied(self, size: int, outcome: Outcome) -> Settled:
        """The picture's outcome. size: payload bytes. Without an answer the first one stands."""
        self.cost.add_picture(size, outcome)
        if not isinstance(outcome, Answer):
            return self.picture_given_up()
        self.state = State.ANSWERED
        return self._settled(outcome)

    def picture_given_up(self) -> Settled:
        """No picture was sent, or it got no answer: the first answer stands."""
        assert self._server is not None, "no picture was asked for"
        self.state = State.ANSWERED
        return self._server

    def corrected(self, answer: Answer) -> Verdict:
        """The server's answer after the early exit's had gone out."""
        self.state = State.CORRECTED
        return self._fold(answer)

    def _settled(self, answer: Answer) -> Settled:
        return Settled(
            "server", self._fold(answer), part=answer.part, cut_short=answer.fallback, server=answer.server
        )

    def _fold(self, answer: Answer) -> Verdict:
        """The verdict once this answer is in: together with what is known so far, or the answer's alone.

        Rows that an older release spooled have no early exit's probabilities: there the server answers alone.
        """
        early = np.frombuffer(self._early, np.float32)
        if len(early) != self.classes:
            return Verdict(answer.class_index, answer.probability)
        both = _both(early, answer)
        self._early = both.tobytes()
        best = int(both.argmax())
        return Verdict(best, float(both[best]))


def _both(before: NDArray[np.float32], answer: Answer) -> NDArray[np.float32]:
    """What each class gets once this answer is in, float32 [K]. before: what it had, float32 [K]."""
    best, probability = np.array([answer.class_index]), np.array([answer.probability], np.float32)
    return np.asarray(both_exits(before[None], best, probability)[0], np.float32)
