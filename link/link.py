"""The link to a server: one stream, kept up in the background; every frame gets exactly one outcome.

Invariants:
- ``offload`` calls its callback exactly once per frame: with an ``Answer``, or with a ``Refusal`` that says
  why there is no answer. It does so within ``Pace.timeout``, whatever the server or the network does.
- Nothing is connected before the first frame.
- While a connection is being made for the first time, or again after a stream that worked, frames wait for
  it. Once it has failed, with every server that there is (``servers.py``), they do not: until a stream is
  accepted again, each frame is turned away at once. So are they while the breaker is open (``breaker.py``)
  and no other server may take them.
- A frame keeps its sequence number (``outbox.py``). If its stream breaks before its reply, it is sent again
  on the next stream under that number, in order, as long as its deadline allows and at most ``SENDS`` times
  in all. Only one stream at a time knows a frame, so that it has one outcome.
- Only a stream that was of use makes the next pause short (``backoff.py``).
- A picture is sent only on a stream whose server takes it; otherwise its outcome is that it was not sent.
- Time is ``time.monotonic``: a clock that is set changes nothing here.

Three threads: gRPC's own takes messages from ``_next_message``; ``_keep_up`` makes the stream and reads its
replies (``session.py``); ``_keep_time`` ends what takes too long.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from offramp.common.codec.activation import CodecId
from offramp.common.errors import MessageError, OfframpError
from offramp.common.wire import frame
from offramp.link.backoff import Backoff, Sparingly
from offramp.link.metrics import LinkMetrics
from offramp.link.outbox import BEHIND_MOST, FRAME_OVERHEAD, SENDS, Limits, Offload, Outbox, Pace
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from offramp.link.preference import Preference
from offramp.link.security import Security
from offramp.link.servers import End, Server, Servers
from offramp.link.session import Kit, Owner, Session, Terms
from offramp.link.wire_bytes import WireCounter
from offramp.v1 import inference_pb2 as pb

__all__ = ["FRAME_OVERHEAD", "SENDS", "Answer", "Cause", "Link", "Outcome", "Pace", "Refusal", "Terms"]

log = logging.getLogger("offramp.link")

CLOSE_SECONDS = 2.0
"""How long ``close`` waits for the server to end the stream in good order."""


class _State(Enum):
    IDLE = auto()
    CONNECTING = auto()
    READY = auto()
    DOWN = auto()
    CLOSED = auto()


class Link:
    """Frames to one server at a time, and their answers back.

    servers: HOST:PORT each, in the order in which they are tried. prefer_first: go back to an earlier one
    once it takes streams again. failures: timeouts and refusals in a row that open the breaker. meanwhile:
    what the log says of frames while no server can be reached.
    """

    def __init__(
        self,
        servers: Sequence[str],
        terms: Terms,
        pace: Pace,
        metrics: LinkMetrics,
        *,
        prefer_first: bool = False,
        failures: int = 5,
        security: Security | None = None,
        meanwhile: str = "frames have no answer",
    ) -> None:
        self.wire = WireCounter()
        self.failure: OfframpError | None = None
        """Why the link was last down; None if it never was."""
        owner = Owner(
            begins=self._begins,
            next_message=self._next_message,
            accepted=self._accepted,
            draining=self._draining,
            excess=self._excess,
            replied=self._replied,
            refuse=self._refuse,
        )
        self._kit = Kit(terms, pace.timeout, security or Security(), metrics, self.wire, owner)
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        """For all that follows."""
        self._work = threading.Condition(self._lock)
        """The writer waits for it: something to send, or the stream's end."""
        self._space = threading.Condition(self._lock)
        """Others wait for it: room in the window, nothing under way, another state."""
        self._looks_at = math.inf
        """When the thread that keeps time looks again by itself."""
        self._sooner = threading.Event()
        """Wakes the thread that keeps time: a deadline lies before those that it knew."""
        self._state = _State.IDLE
        self._outbox = Outbox(pace)
        self._servers = Servers(servers, failures)
        self._session = Session(self._servers.current, self._kit, time.monotonic())
        self._preference = Preference(self._kit, self._look_back, self._return_to)
        self._back = [self._preference.look_back] if prefer_first and len(servers) > 1 else []
        self._drains = Sparingly()
        self._breaker_shown = False
        self._threads: list[threading.Thread] = []
        metrics.watch_wire(self.wire.total)

    # --- what callers use ---

    @property
    def timeout(self) -> float:
        """How long a frame may take, at most, seconds."""
        return self._kit.timeout

    def offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        *,
        late: Callable[[Answer], None] | None = None,
        background: bool = False,
        behind: bool = False,
        deadline: float | None = None,
        trace: bytes = b"",
    ) -> None:
        """Send one frame. Waits while the window is full, no longer than the timeout.

        late: called with the answer if it comes after the deadline, once ``done`` was called without it.
        background: it gives way to other frames, and is turned away rather than wait for a window or for a
        connection. behind: it waits until no other frame does, and is sent once at most. deadline: when its
        outcome is due, ``time.monotonic``'s, no later than a timeout from now; None: then. trace: a W3C trace
        context to send along, 25 bytes (``tracing.py``).
        """
        start = time.monotonic()
        due = start + self._kit.timeout if deadline is None else deadline
        item = Offload(codec, payload, done, late, start, due, trace, behind)
        with self._lock:
            if self._state is _State.IDLE:
                self._start()
            refusal = self._admit(item, background)
        if due < self._looks_at:
            self._sooner.set()
        if refusal is not None:
            if not background and not behind:
                self._kit.metrics.unanswered.labels(refusal.cause).inc()
            done(refusal)

    def wait_idle(self) -> None:
        """Wait until every frame has its outcome; each has one within its timeout."""
        with self._lock:
            self._outbox.hurry += 1
            self._work.notify()
            self._space.wait_for(lambda: not len(self._outbox))
            self._outbox.hurry -= 1

    def late_replies_due(self) -> bool:
        """Whether a frame that has its outcome may still be answered."""
        with self._lock:
            return bool(self._outbox.late)

    def close(self, wait: bool = True) -> None:
        """Give outstanding frames their outcome, end the stream and stop the threads.

        wait: for the server's answers to them; otherwise they have none.
        """
        if wait:
            self.wait_idle()
        with self._lock:
            self._state = _State.CLOSED
            self._session.half_close = True
            self._notify()
            if not self._session.is_accepted:
                self._session.cancel("closed")
        self._sooner.set()
        self._preference.close()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            self._session.cancel("closed")
            self._show_breaker(False)
        for thread in self._threads:
            thread.join()

    # --- a frame comes in, under the lock ---

    def _start(self) -> None:
        self._state = _State.CONNECTING
        for work in (self._keep_up, self._keep_time, *self._back):
            thread = threading.Thread(target=work, name=f"offramp_{work.__name__.strip('_')}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _admit(self, item: Offload, background: bool) -> Refusal | None:
        """Put a frame into the outbox, or say why not."""
        while True:
            if self._state not in (_State.CONNECTING, _State.READY):
                reason = "closed" if self.failure is None else str(self.failure)
                return Refusal(reason, Cause.CLOSED if self._is_closed() else Cause.UNAVAILABLE)
            if not self._outbox.takes(item):
                return self._misfit()
            now = time.monotonic()
            breaker = self._servers.current.breaker
            if not breaker.allows(now):
                return Refusal(f"waits for a probe to succeed: {breaker.reason}", Cause.BREAKER)
            if item.behind:
                if breaker.is_open or len(self._outbox.behind) >= BEHIND_MOST:
                    return Refusal("gives way", Cause.WINDOW)
                break
            if background and (self._outbox.waiting or self._state is not _State.READY or breaker.is_open):
                return Refusal("gives way", Cause.WINDOW)
            if self._outbox.has_room(background):
                break
            if background or not self._outbox.pace.waits or now >= item.deadline:
                return Refusal("window full", Cause.WINDOW)
            self._space.wait(item.deadline - now)
        item.probe = not item.behind and breaker.take()
        self._outbox.add(item)
        self._work.notify()
        return None

    def _misfit(self) -> Refusal:
        limits = self._outbox.limits
        most = 0 if limits is None else limits.picture_bytes
        takes = f"takes pictures of at most {most} bytes" if most else "takes no pictures"
        return Refusal(f"{self._session.server.target} {takes}", Cause.PICTURE)

    def _is_closed(self) -> bool:
        return self._state is _State.CLOSED

    def _notify(self) -> None:
        self._work.notify_all()
        self._space.notify_all()

    # --- one stream after the other ---

    def _keep_up(self) -> None:
        backoff = Backoff()
        attempt = 0
        while True:
            if attempt:
                self._kit.metrics.reconnects.inc()
            attempt += 1
            with self._lock:
                session = Session(self._servers.current, self._kit, time.monotonic())
            error = session.run()
            if session.is_accepted:
                self._kit.metrics.connected.dec()
            useful = session.of_use(error is None, time.monotonic())
            if self._end_session(session, error, useful):
                return
            with self._lock:
                away = max(0.0, self._servers.current.away_until - time.monotonic())
                pause = away + backoff.after(useful, self._servers.going_round)
                closed = self._space.wait_for(self._is_closed, pause)
            if closed:
                self._end_session(session, None, useful)
                return

    def _begins(self, session: Session, call: Callable[[], Any]) -> bool:
        with self._lock:
            if self._is_closed():
                return False
            self._session = session
            self._outbox.begin()
            session.call = call()
            self._notify()
            return True

    def _next_message(self, session: Session) -> tuple[Sequence[Offload], bytes] | None:
        with self._lock:
            while not session.half_close:
                wait = self._outbox.due_in(time.monotonic())
                if wait is not None and wait <= 0:
                    items = self._outbox.take()
                    message = session.pack(items)
                    self._outbox.mark_sent(items, len(message), time.monotonic())
                    return items, message
                self._work.wait(wait)
            return None

    def _accepted(self, session: Session, limits: Limits) -> None:
        self._kit.metrics.connects.inc()
        self._kit.metrics.connected.inc()
        with self._lock:
            came_back = self._state is _State.DOWN and not self._servers.fruitless
            session.accepted_at = time.monotonic()
            if not self._is_closed():
                self._state = _State.READY
            misfits = self._outbox.accept(limits)
            self._release(session.server, misfits)
            refusal = self._misfit()
            self._notify()
        target = session.server.target
        log.log(logging.INFO if came_back else logging.DEBUG, "%s accepted the stream", target)
        if self._kit.terms.pictures and not limits.picture_bytes:
            log.warning("%s takes no pictures; it is sent none", target)
        for item in misfits:
            self._refuse(item, refusal.reason, refusal.cause)

    def _draining(self, session: Session) -> None:
        now = time.monotonic()
        level = logging.INFO if self._drains.due(now) else logging.DEBUG
        log.log(level, "%s is draining; connecting again", session.server.target)
        with self._lock:
            session.half_close = True
            session.end_by = now + self._kit.timeout
            if self._state is _State.READY:
                self._state = _State.CONNECTING
            self._notify()

    def _excess(self, replies: int) -> int:
        with self._lock:
            return self._outbox.excess(replies)

    def _replied(
        self, session: Session, sequence: int, error: pb.FrameError | None
    ) -> tuple[Offload | None, Offload | None]:
        with self._lock:
            item, late = self._outbox.settle(sequence)
            if item is not None or late is not None:
                session.progress = True
                session.server.warned_of = None
            elif not self._outbox.was_sent(sequence):
                raise MessageError(f"{session.server.target} answered frame {sequence}, which was never sent")
            if item is not None:
                if error is not None:
                    self._note_error(session, item, error)
                elif session.server.breaker.success():
                    self._watch_breaker()
                if self._outbox.waiting or self._outbox.behind:
                    self._work.notify()
                self._space.notify_all()
        return item, late

    def _refuse(self, item: Offload, reason: str, cause: Cause) -> None:
        if not item.behind:
            self._kit.metrics.unanswered.labels(cause).inc()
        item.done(Refusal(reason, cause, item.sends))

    def _end_session(self, session: Session, error: OfframpError | None, useful: bool) -> bool:
        """Keep its frames for the next stream, or give them their outcome; whether the link is closed."""
        server = session.server
        with self._lock:
            session.half_close = True
            if self._is_closed():
                verdict, again, lost = None, 0, self._outbox.end(0.0, again=False)[1]
            else:
                now = time.monotonic()
                # A stream that never answered and went silent is no reason to believe in the next one.
                silent = session.cancelled is not None and not session.progress
                end = End(error, session.is_accepted, useful, silent, bool(len(self._outbox)))
                verdict = self._servers.ended(server, end, now, self._state is _State.DOWN)
                self.failure = self.failure if error is None else error
                again, lost = self._outbox.end(now, verdict.waits)
                self._state = _State.CONNECTING if verdict.waits else _State.DOWN
                self._release(server, lost)
                if self._servers.current is server:
                    self._go_on(now)
            following = self._servers.current.target
            self._notify()
        if error is not None and verdict is not None:
            if verdict.worked:
                log.log(verdict.level, "%s; connecting to %s, %d frames wait for it", error, following, again)
            elif verdict.another:
                log.log(verdict.level, "%s; trying %s", error, following)
            else:
                log.log(verdict.level, "%s; %s until it is back", error, self._meanwhile)
        reason = f"{server.target} ended the stream without a reply" if error is None else str(error)
        for item in lost:
            self._refuse(item, reason, Cause.UNAVAILABLE)
        return verdict is None

    # --- breakers, under the lock ---

    def _note_error(self, session: Session, item: Offload, error: pb.FrameError) -> None:
        now, server = time.monotonic(), session.server
        reason = f"{server.target} refuses ({frame.reason_name(error.reason)})"
        if error.reason == pb.FrameError.REASON_OVERLOADED and error.retry_after_ms:
            server.breaker.hold(now, error.retry_after_ms / 1000, reason)
        else:
            server.breaker.failure(now, reason, item.probe)
        self._leave_if_better(session, now)
        self._watch_breaker()

    def _release(self, server: Server, items: Sequence[Offload]) -> None:
        """These frames ended and say nothing of the server."""
        if any(item.probe for item in items):
            server.breaker.release()

    def _leave_if_better(self, session: Session, now: float) -> None:
        """If this server's breaker is open and another server may take frames, they go there."""
        if session.server is self._servers.current and session.is_accepted and self._servers.better(now):
            session.cancel(session.server.breaker.reason)
            if self._state is _State.READY:
                self._state = _State.CONNECTING
            self._go_on(now)
            self._notify()

    def _go_on(self, now: float) -> None:
        """From now on frames are for the next server, if there is another."""
        before = self._servers.current
        if self._servers.go_on(now):
            self._changed(before)
        self._watch_breaker()

    def _changed(self, before: Server) -> None:
        """Another server than before is the current one."""
        self._kit.metrics.failovers.inc()
        # A probe says something only of the server that it was let out to.
        if self._outbox.drop_probes():
            before.breaker.release()

    def _look_back(self) -> tuple[list[Server], bool]:
        with self._lock:
            settled = self._servers.is_first and self._session.progress
            return self._servers.preferred(time.monotonic()), settled

    def _return_to(self, server: Server) -> None:
        """Frames are for this one again; the stream in use ends as if its server drained. Takes the lock."""
        with self._lock:
            before = self._servers.current
            if self._state is not _State.READY or server is before:
                return
            self._servers.current = server
            self._changed(before)
            server.breaker.success()
            self._watch_breaker()
            self._session.half_close = True
            self._session.end_by = time.monotonic() + self._kit.timeout / 2
            self._state = _State.CONNECTING
            self._notify()
        self._sooner.set()
        log.info("%s takes streams again; going back to it from %s", server.target, before.target)

    def _watch_breaker(self) -> None:
        breaker = self._servers.current.breaker
        self._show_breaker(breaker.is_open)
        fresh = self._servers.new_opens()
        if fresh:
            self._kit.metrics.breaker_opens.inc(fresh)
            if breaker.is_open:
                log.info("%s; frames are turned away until a probe succeeds", breaker.reason)

    def _show_breaker(self, is_open: bool) -> None:
        """Others may have links with these metrics as well."""
        self._kit.metrics.breaker_open.inc(is_open - self._breaker_shown)
        self._breaker_shown = is_open

    # --- time ---

    def _keep_time(self) -> None:
        pause = self._kit.timeout
        while True:
            self._sooner.wait(pause)
            self._sooner.clear()
            with self._lock:
                if self._is_closed():
                    return
                late = self._take_overdue()
                # What starts later ends a whole timeout later, or says so by ``_sooner``.
                now = time.monotonic()
                due = min(self._outbox.next_deadline(now), self._session.next_deadline())
                pause = max(due - now, 0.001)
                self._looks_at = now + pause
            for item in late:
                self._refuse(item, f"no reply within {self._kit.timeout:g} s", Cause.TIMEOUT)

    def _take_overdue(self) -> list[Offload]:
        """Frames whose time is up; they are forgotten here. A stream that has gone silent is ended."""
        now, session = time.monotonic(), self._session
        server = session.server
        overdue, silence = self._outbox.overdue(now, session.last_received)
        if silence is not None and session.cancelled is None:
            reason = f"silent for {silence:.1f} s"
            session.cancel(reason)
            server.breaker.trip(now, f"{server.target}: {reason}")
        for item in overdue:
            if not self._outbox.was_fair(item, now):
                self._release(server, (item,))
            # One that was never sent waited for the others here.
            elif item.sends or not item.behind:
                server.breaker.failure(now, f"{server.target} answers too late", item.probe)
        if overdue:
            self._leave_if_better(session, now)
        session.cancel_if_overdue(now)
        if overdue:
            self._watch_breaker()
            self._notify()
        return overdue
