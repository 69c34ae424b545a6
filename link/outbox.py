"""Frames without an outcome: which goes out next, under which number, and until when. No lock, no socket.

Rules this module keeps:
- ``now`` is the caller's ``time.monotonic()``, seconds. One thread at a time.
- A frame is in one place: it waits, or was sent on the current stream, or had its outcome already and is kept
  for a late reply.
- The window bounds those that wait and those that were sent together; the server's limit bounds them too once
  it is known. Frames that came before it may be more.
- A frame gets its number when it is first sent, and keeps it: numbers rise by one over the link's life. Of a
  broken stream's frames, those that may be sent again come first, in the order of their numbers.
- One message holds frames whose numbers follow each other, within the server's limits.
- Frames wait for others to share a message no longer than ``Pace.coalesce``, and not at all if no other can
  come.
- A frame that stands ``behind`` goes out while no other waits, few at a time, and once: a stream that breaks
  leaves it without an answer. It takes no room in the window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from offramp.common.codec.activation import CodecId
from offramp.common.wire import frame, transport
from offramp.link.outcome import Answer, Outcome

FAIR_SECONDS = 0.25
"""A frame that had so long, or half its link's timeout, and no answer says something of the server."""
SENDS = 3
"""How often a frame is sent, at most: one that crashes servers must not crash all of them."""
LATE_MOST = 1024
"""Frames of one stream whose late reply is still waited for."""
MESSAGE_OVERHEAD = 32
"""Most bytes that a message takes beside its frames: ``first_sequence``, tags of ``codecs``."""
FRAME_OVERHEAD = 14
"""Most bytes that a frame takes beside its payload and its trace context: tags, lengths, CRC-32, codec."""
BEHIND_MOST = 16
"""Frames that wait behind all others, at most: more would only be too late."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many frames are under way, and for how long.

    timeout: seconds from handing a frame in to its outcome. window: frames without an outcome, at most.
    coalesce: seconds that a frame may wait for others to share its message; coalesce_frames: how many are
    enough. waits: whether whoever hands a frame in waits while the window is full, which is then no larger
    than the server's limit; otherwise the frame is turned away, and the window is for those that wait too.
    """

    timeout: float
    window: int
    coalesce: float = 0.0
    coalesce_frames: int = transport.FRAMES_PER_MESSAGE
    waits: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server of the current stream allows. picture_bytes: of one picture, 0 for no pictures."""

    frames_in_flight: int
    frames_per_message: int
    message_bytes: int
    picture_bytes: int = 0


@dataclass(slots=True, eq=False)
class Offload:
    """One frame from ``Link.offload`` to its outcome.

    start, deadline: monotonic seconds. late: called with an answer that comes after ``done`` was called
    without. trace: a W3C trace context, 25 bytes, or empty.
    """

    codec: CodecId
    payload: bytes
    done: Callable[[Outcome], None]
    late: Callable[[Answer], None] | None
    start: float
    deadline: float
    trace: bytes = b""
    behind: bool = False
    """Whether it gives way to every other frame."""
    probe: bool = field(default=False, init=False)
    sequence: int = field(default=0, init=False)
    """0 until it is sent for the first time."""
    sends: int = field(default=0, init=False)
    sent_at: float = field(default=math.inf, init=False)
    message_bytes: float = field(default=0.0, init=False)
    envelope_bytes: float = field(default=0.0, init=False)


class Outbox:
    """A link's frames without an outcome, and what one stream was sent."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.limits: Limits | None = None
        """The current stream's; None until the server has accepted it."""
        self.waiting: deque[Offload] = deque()
        self.behind: deque[Offload] = deque()
        """Those that wait until no other does."""
        self.sent: dict[int, Offload] = {}
        """On the current stream, by sequence number, rising."""
        self.late: dict[int, Offload] = {}
        """They have their outcome; the oldest are forgotten first."""
        self.hurry = 0
        """Above 0 while somebody waits for all outcomes: nothing is held back to share a message."""
        self._next_sequence = 1
        self._behind_sent = 0
        """How many of ``sent`` stood behind."""
        self._owed = 0
        """Replies that may still come on this stream, one for each frame that was sent on it."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.behind) + len(self.sent)

    # --- frames come in ---

    @property
    def window(self) -> int:
        """How many frames may be without an outcome: the window, or the server's limit if that is less."""
        limits, pace = self.limits, self.pace
        return min(pace.window, limits.frames_in_flight) if limits is not None and pace.waits else pace.window

    def has_room(self, background: bool = False) -> bool:
        """Whether another frame may come in. background: half of the window is for others."""
        in_window = len(self.waiting) + len(self.sent) - self._behind_sent
        return in_window < (max(1, self.window // 2) if background else self.window)

    def takes(self, item: Offload) -> bool:
        """Whether the server takes this frame, as far as it has said so; only pictures can be refused."""
        limits = self.limits
        if item.codec is not CodecId.PICTURE or limits is None:
            return True
        whole_message = limits.message_bytes - MESSAGE_OVERHEAD - FRAME_OVERHEAD - len(item.trace)
        return len(item.payload) <= min(limits.picture_bytes, whole_message)

    def add(self, item: Offload) -> None:
        """Put a frame behind those that wait; the caller has checked ``has_room`` and ``takes``."""
        (self.behind if item.behind else self.waiting).append(item)

    def drop_probes(self) -> bool:
        """No frame that waits is a probe any more; whether one was."""
        found = False
        for item in self.waiting:
            found |= item.probe
            item.probe = False
        return found

    # --- messages go out ---

    @property
    def room(self) -> int:
        """How many more frames the server takes. More may wait: they came before its limits did."""
        return 0 if self.limits is None else self.limits.frames_in_flight - len(self.sent)

    def due_in(self, now: float) -> float | None:
        """Seconds until a message is to go out, 0 or less: now; None if something must happen first."""
        limits = self.limits
        if limits is None:
            return None
        room = limits.frames_in_flight - len(self.sent)
        if room <= 0:
            return None
        if not self.waiting:
            return 0.0 if self._room_behind else None
        first, coalesce = self.waiting[0], self.pace.coalesce
        # A picture has waited for a reply already.
        if not coalesce or self.hurry or first.sends or first.codec is CodecId.PICTURE:
            return 0.0
        enough = min(self.pace.coalesce_frames, limits.frames_per_message, room)
        if len(self.waiting) >= enough or not self.has_room():
            return 0.0
        return first.start + coalesce - now

    @property
    def _room_behind(self) -> int:
        """How many of those behind may go out now, were no other frame to."""
        # A quarter of the window: what waits for the server is soon the others' again.
        most = max(1, self.window // 4) - self._behind_sent
        return max(0, min(len(self.behind), most))

    def take(self) -> list[Offload]:
        """The frames of the next message, numbered: all that wait and fit into it, at least one.

        Those behind go alone, or at the end of a message that has waited to be shared.

        To be called only if ``due_in`` says that one is due; ``mark_sent`` follows.
        """
        limits = self.limits
        assert limits is not None
        bytes_left = limits.message_bytes - MESSAGE_OVERHEAD
        most = min(limits.frames_per_message, self.room)
        items: list[Offload] = []
        shared = not self.waiting or self.pace.coalesce > 0
        behind = self._room_behind
        while len(items) < most:
            queue = self.waiting
            if not queue:
                if not shared or not behind:
                    break
                queue, behind = self.behind, behind - 1
            item = queue[0]
            bytes_left -= len(item.payload) + len(item.trace) + FRAME_OVERHEAD
            sequence = item.sequence or self._next_sequence
            if items and (bytes_left < 0 or sequence != items[-1].sequence + 1):
                break
            if not item.sequence:
                item.sequence = sequence
                self._next_sequence += 1
            items.append(queue.popleft())
        return items

    def mark_sent(self, items: Sequence[Offload], message_bytes: int, now: float) -> None:
        """These frames go out now in one message of so many bytes."""
        # Payloads of one message differ in length; the rest of it is shared evenly.
        shared = (message_bytes - sum(len(item.payload) for item in items)) / len(items)
        envelope = frame.ENVELOPE_BYTES / len(items)
        for item in items:
            item.sent_at = now
            item.message_bytes += len(item.payload) + shared
            item.envelope_bytes += envelope
            item.sends += 1
            self.sent[item.sequence] = item
            self._behind_sent += item.behind
        self._owed += len(items)

    # --- replies come back ---

    def excess(self, replies: int) -> int:
        """How many of this many replies are beyond one for each frame of the stream."""
        expected = min(replies, self._owed)
        self._owed -= expected
        return replies - expected

    def settle(self, sequence: int) -> tuple[Offload | None, Offload | None]:
        """The frame that this reply answers, and the one that it answers too late; at most one of them."""
        item = self.sent.pop(sequence, None)
        if item is not None:
            self._behind_sent -= item.behind
        return item, self.late.pop(sequence, None) if item is None else None

    def was_sent(self, sequence: int) -> bool:
        """Whether a frame with this number was ever sent."""
        return 0 < sequence < self._next_sequence

    # --- time ---

    def next_deadline(self, now: float) -> float:
        """The first one; ``now`` and the timeout if there are no frames."""
        deadlines = [now + self.pace.timeout]
        deadlines += [item.deadline for queue in (self.waiting, self.behind) for item in queue]
        deadlines += [item.deadline for item in self.sent.values()]
        return min(deadlines)

    def overdue(self, now: float, heard: float) -> tuple[list[Offload], float | None]:
        """Frames whose time is up, taken out; and for how long the server is silent, None if it is not.

        heard: when it last said something. Sent ones are kept for a late reply if they want it.
        """
        overdue = [item for queue in (self.waiting, self.behind) for item in queue if item.deadline <= now]
        if overdue:
            self.waiting = deque(item for item in self.waiting if item.deadline > now)
            self.behind = deque(item for item in self.behind if item.deadline > now)
        silence: float | None = None
        for sequence, item in list(self.sent.items()):
            if item.deadline > now:
                continue
            overdue.append(self.sent.pop(sequence))
            self._behind_sent -= item.behind
            if item.late is not None:
                self.late[sequence] = item
                if len(self.late) > LATE_MOST:
                    del self.late[next(iter(self.late))]
            # One that was sent shortly before its deadline says nothing of the server.
            if silence is None and heard < item.sent_at <= now - self.pace.timeout / 2:
                silence = now - item.sent_at
        return overdue, silence

    def was_fair(self, item: Offload, now: float) -> bool:
        """Whether an overdue frame was under way long enough to be the server's failure.

        Frames of other machines may come here with little of their time left.
        """
        return now - item.start >= min(FAIR_SECONDS, self.pace.timeout / 2)

    # --- streams ---

    def begin(self) -> None:
        """A new stream: nothing is known of its server's limits."""
        self.limits = None
        self._owed = 0

    def accept(self, limits: Limits) -> list[Offload]:
        """The server accepted the stream; the frames that it does not take, taken out."""
        self.limits = limits
        misfits = [item for item in self.waiting if not self.takes(item)]
        if misfits:
            self.waiting = deque(filter(self.takes, self.waiting))
        return misfits

    def end(self, now: float, again: bool) -> tuple[int, list[Offload]]:
        """The stream ended: how many of its frames will be sent again, and those that have no answer.

        again: whether frames wait for another stream; otherwise all of them have no answer.
        """
        sent = list(self.sent.values())
        self.sent.clear()
        self.late.clear()
        self._behind_sent = 0
        if not again:
            lost = [*sent, *self.waiting, *self.behind]
            self.waiting.clear()
            self.behind.clear()
            return 0, lost
        repeated = [i for i in sent if i.sends < SENDS and i.deadline > now and not i.behind]
        lost = [i for i in sent if i.sends >= SENDS or i.deadline <= now or i.behind]
        # Numbers in a stream only rise. Those that waited here were given theirs later, or have none yet.
        self.waiting.extendleft(reversed(repeated))
        return len(repeated), lost
