"""One bundle's requests on their way to the server: kept while no server answers, bounded in number and time.

Rules this module keeps:
- Each job gets one outcome: an answer, or the error that its device is sent.
- A request that the server has refused is not sent again. What says nothing of the request (no server, a
  timeout, an overload) leaves it waiting, the oldest first, until its time is up.
- Beyond ``most`` jobs the oldest gets an error.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from offramp.common.codec.activation import CodecId
from offramp.common.wire.datagram import ReplyError
from offramp.link.offloader import Offloader
from offramp.link.outcome import Answer, Cause, Outcome, Refusal

PAUSE_SECONDS = 0.5
"""After a server did not take a request, before it is offered the next one."""
_NAMED = re.compile(r"refused \((\w+)\)")


@dataclass(slots=True, eq=False)
class Job:
    """One request until its outcome. due: monotonic seconds, when it gets an error."""

    codec: CodecId
    payload: bytes
    done: Callable[[Answer | ReplyError], None]
    due: float


class Lane:
    """Keeps jobs, and hands them to a link as it takes them. most: jobs without an outcome."""

    def __init__(self, link: Offloader, most: int, name: str) -> None:
        self._link = link
        self._most = most
        self._waiting: deque[Job] = deque()
        self._sent: set[Job] = set()
        self._changed = threading.Condition()
        """For all that follows and the two above."""
        self._pause_until = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"offramp-{name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting) + len(self._sent)

    def put(self, job: Job) -> None:
        """Take a job; it never waits. What must give way for it gets its error here."""
        dropped: list[Job] = []
        with self._changed:
            self._waiting.append(job)
            while len(self._waiting) + len(self._sent) > self._most and self._waiting:
                dropped.append(self._waiting.popleft())
            self._changed.notify_all()
        for each in dropped:
            each.done(ReplyError.OVERLOADED)

    def close(self, seconds: float) -> None:
        """Wait so long for outcomes; then what is left gets an error."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._sent, seconds)
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            job.done(ReplyError.UNAVAILABLE)
        self._link.close(wait=False)
        self._thread.join()

    # --- the lane's thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                now = time.monotonic()
                expired = []
                # All wait equally long, so that those in front are due first.
                while self._waiting and self._waiting[0].due <= now:
                    expired.append(self._waiting.popleft())
                    self._changed.notify_all()
                pause = self._pause_until - now
                job = None
                if not expired and pause > 0:
                    self._changed.wait(max(0.0, min(pause, self._waiting[0].due - now)))
                elif not expired:
                    job = self._waiting.popleft()
                    self._sent.add(job)
            for each in expired:
                each.done(ReplyError.UNAVAILABLE)
            if job is not None:
                # Waits while the link's window is full.
                self._link.offload(job.codec, job.payload, partial(self._outcome, job))

    # --- on the link's threads ---

    def _outcome(self, job: Job, outcome: Outcome) -> None:
        now = time.monotonic()
        said = outcome if isinstance(outcome, Answer) else error_of(outcome)
        with self._changed:
            self._sent.discard(job)
            again = said is None and job.due > now and not self._closed
            if again:
                self._waiting.appendleft(job)
                self._pause_until = now + PAUSE_SECONDS
            self._changed.notify_all()
        if not again:
            job.done(ReplyError.UNAVAILABLE if said is None else said)


def error_of(refusal: Refusal) -> ReplyError | None:
    """What a device is sent for this refusal; None where another time may answer it."""
    if refusal.cause is not Cause.REFUSED:
        return None
    found = _NAMED.match(refusal.reason)
    name = found[1].upper() if found else ""
    return ReplyError[name] if name in ReplyError.__members__ else ReplyError.INTERNAL
