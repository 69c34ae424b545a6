"""Follows a channel: pulls what it names, runs a command with it, and goes back where that does worse.

A new bundle is in its probation until it has run so long, from its first metrics page on. What ends that
early, or the judge's verdict, refuses it: for good where the bundle is at fault, else until later. What is
tried is on disk before it is started, so that one that takes the machine down is tried twice and no more.

A command without ``{bundle}`` is not restarted for a new bundle, and none is on probation: a server loads
what lies in the directory by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from offramp.cli.fleet.pages import PageError, fetch, read_page
from offramp.cli.follow.channel import Channel, Folder, Older
from offramp.cli.follow.child import BUNDLE, Child, filled, said
from offramp.cli.follow.judge import Figures, Verdict, Window, figures_of, is_of, judge
from offramp.cli.follow.metrics import FollowMetrics
from offramp.cli.follow.notify import Relay
from offramp.cli.follow.state import Held, State, Trial, folder_of, read_state, write_state
from offramp.common.bundle.signature import UNDATED, date_text
from offramp.common.errors import ExitCode, OfframpError, OutputError, printable

log = logging.getLogger("offramp.follow")

STARTS = 2
"""Times that a bundle is started that never lives to the end of its probation, by no fault that was seen."""
RESTART_FIRST, RESTART_MOST = 1.0, 60.0
"""Seconds until a command that failed is started again: doubled each time up to the second."""
SILENT_SECONDS = 120.0
"""How long a command may take to show its metrics page; its probation begins with that."""
PAGE_SECONDS = 5.0
"""How long a metrics page may take."""
LATER = frozenset({ExitCode.UNAVAILABLE, ExitCode.PEER, ExitCode.ADDRESS})
"""Exit statuses that are no fault of the bundle."""


@dataclass(frozen=True)
class Terms:
    """What the flags say. All times are seconds."""

    command: Sequence[str]
    metrics_url: str | None
    every: float
    probation: float
    grace: float
    keep: int
    allow_older: bool = False
    """Whether a bundle may be followed by one that was signed before it."""

    @property
    def switches(self) -> bool:
        """Whether the command is restarted for a new bundle."""
        return any(BUNDLE in each for each in self.command)

    @property
    def look(self) -> float:
        """How often the metrics page is read."""
        return min(5.0, self.probation / 10)


class Follower:
    """One follower. Its coroutine is ``run``; ``stop`` and ``poll`` may be called from signal handlers."""

    def __init__(
        self, terms: Terms, folder: Folder, channel: Channel, metrics: FollowMetrics, relay: Relay
    ) -> None:
        self._terms = terms
        self._folder = folder
        self._channel = channel
        self._metrics = metrics
        self._relay = relay
        self._state = State()
        self._known: str | None = None
        """The digest of the artifact that need not be looked at again."""
        self._older: str | None = None
        """The digest of the last artifact that was signed too early."""
        self._stopping = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._window = Window(terms.probation)
        self._pause = RESTART_FIRST

    def stop(self) -> None:
        """End the command, and then the follower."""
        self._relay.stopping()
        self._stopping.set()

    def poll(self) -> None:
        """Ask the channel now."""
        self._poll_now.set()

    async def run(self) -> int:
        """Until it is stopped, or the command is done; the exit status. Raises ConfigError, OutputError."""
        self._begin()
        poller: asyncio.Task[Held] | None = None
        status = int(ExitCode.OK)
        try:
            plain = {"Accept-Encoding": "identity"}
            async with httpx.AsyncClient(trust_env=False, verify=False, headers=plain) as client:
                while not self._stopping.is_set():
                    if poller is None:
                        poller = asyncio.ensure_future(self._next_bundle())
                    if (running := self._running()) is None or not self._terms.command:
                        await self._first_of(poller)
                        if poller.done():
                            self._take_up(poller.result())
                            poller = None
                        continue
                    child = await self._start(running)
                    ended: int | None = None
                    try:
                        poller, ended = await self._tend(child, running, poller, client)
                    finally:
                        self._relay.ends()
                        status = await child.stop(self._terms.grace)
                    if ended is not None and not await self._restarts(ended, child.seconds):
                        return status
        finally:
            if poller is not None:
                poller.cancel()
                with suppress(asyncio.CancelledError, OfframpError):
                    await poller
            self._stopped()
        return status

    # --- what is run ---

    def _begin(self) -> None:
        """Read what is remembered, and settle what was cut off."""
        self._state = state = read_state(self._folder.path)
        held = tuple(each for each in state.held if self._folder.is_whole(each))
        self._state = state.model_copy(update={"held": held})
        if (trial := state.trial) is not None:
            if not self._folder.is_whole(trial.held) or not self._terms.switches:
                self._set(self._state.model_copy(update={"trial": None}))
            elif trial.starts >= STARTS:
                self._roll_back(
                    Verdict("interrupted", f"was cut off in its probation {trial.starts} times", again=False)
                )
        self._known = self._state.current.artifact if self._state.current else None
        if (trial := self._state.trial) is not None:
            self._known = trial.held.artifact
        self._clean()

    def _running(self) -> Held | None:
        """The bundle to run."""
        return self._state.trial.held if self._state.trial is not None else self._state.current

    async def _start(self, running: Held) -> Child:
        trial = self._state.trial
        if trial is not None:
            # Before it runs: whatever it does to this machine.
            self._set(
                self._state.model_copy(update={"trial": Trial(held=trial.held, starts=trial.starts + 1)})
            )
        self._metrics.starts.inc()
        self._metrics.show(running.bundle, probation=trial is not None)
        command = filled(self._terms.command, self._folder.place(running.bundle))
        child = await Child.start(command, self._relay.environment)
        self._relay.started()
        log.info("started %s with bundle %s%s", command[0], running.folder, " on probation" if trial else "")
        return child

    async def _tend(
        self, child: Child, running: Held, poller: asyncio.Task[Held] | None, client: httpx.AsyncClient
    ) -> tuple[asyncio.Task[Held] | None, int | None]:
        """Until this command has to end, or has ended by itself: then its exit status is returned."""
        before = self._window.figures() if self._state.trial is not None else None
        if self._state.trial is None:
            self._window = Window(self._terms.probation)
        seen: float | None = None
        while not self._stopping.is_set():
            if poller is None and self._state.trial is None:
                poller = asyncio.ensure_future(self._next_bundle())
            # A second change waits until the first has passed.
            waits = poller if self._state.trial is None else None
            await self._first_of(child.ended, waits, seconds=self._terms.look)
            if child.ended.done():
                return poller, self._child_ended(child)
            figures = await self._read(client, running)
            if child.ended.done():
                continue
            if seen is None and (figures is not None or self._terms.metrics_url is None):
                seen = time.monotonic()
            if self._state.trial is not None:
                done = seen is not None and time.monotonic() - seen >= self._terms.probation
                verdict = None if figures is None else judge(figures, before, final=done)
                if verdict is None and seen is None and child.seconds >= SILENT_SECONDS:
                    verdict = Verdict("silent", "showed no metrics page of its own", again=False)
                if verdict is None and done:
                    self._pass()
                    continue
                if verdict is not None:
                    self._roll_back(verdict)
                    return poller, None
                continue
            if figures is not None:
                self._window.add(time.monotonic(), figures)
            if poller is not None and poller.done():
                found, poller = poller.result(), None
                if self._take_up(found):
                    return poller, None
        return poller, None

    def _child_ended(self, child: Child) -> int | None:
        """Its exit status; None where the bundle was on probation and another is to run."""
        status = child.ended.result()
        if self._state.trial is not None:
            if status != ExitCode.OK:
                reason = f"ended with {said(status)} in its probation"
                self._roll_back(Verdict("exit", reason, again=status in LATER))
                return None
            self._pass()
        return status

    async def _restarts(self, status: int, seconds: float) -> bool:
        """Whether the command is started again, after a pause."""
        if status == ExitCode.OK:
            log.info("the command is done")
            return False
        if status == ExitCode.CONFIG:
            log.error("the command ended with %s, which no restart mends", said(status))
            return False
        if seconds > RESTART_MOST:
            self._pause = RESTART_FIRST
        log.warning("the command ended with %s; starting it again in %.3g s", said(status), self._pause)
        await self._first_of(seconds=self._pause)
        self._pause = min(self._pause * 2, RESTART_MOST)
        return True

    # --- what becomes of a new bundle ---

    def _take_up(self, found: Held) -> bool:
        """A bundle was pulled; whether the command is to be restarted for it."""
        current = self._state.current
        if current is not None and current.bundle == found.bundle:
            # The same files under another manifest.
            self._set(self._state.taken(found, self._terms.keep))
            return False
        if current is None or not self._terms.switches:
            self._set(self._state.taken(found, self._terms.keep))
            self._metrics.switches.inc()
            self._metrics.show(found.bundle, probation=False)
            log.info("%s is the bundle %s", self._folder.path, found.folder)
            self._clean()
            return False
        if not self._set(self._state.model_copy(update={"trial": Trial(held=found)})):
            # One that takes the machine down would not be remembered.
            self._known = current.artifact
            return False
        log.info("bundle %s goes on probation for %g s", found.folder, self._terms.probation)
        return True

    def _pass(self) -> None:
        trial = self._state.trial
        assert trial is not None
        self._set(self._state.taken(trial.held, self._terms.keep))
        self._metrics.switches.inc()
        self._metrics.show(trial.held.bundle, probation=False)
        self._window = Window(self._terms.probation)
        log.info("bundle %s has passed its probation", trial.held.folder)
        self._clean()

    def _roll_back(self, verdict: Verdict) -> None:
        trial = self._state.trial
        assert trial is not None
        self._metrics.rollbacks.labels(verdict.cause).inc()
        artifact = trial.held.artifact
        self._set(self._state.refuse(artifact, verdict.reason, again=verdict.again, now=time.time()))
        log.warning(
            "bundle %s %s: going back; it is %s",
            trial.held.folder,
            verdict.reason,
            "tried again later" if verdict.again else "not taken up again",
        )
        if not verdict.again:
            self._clean()

    def _stopped(self) -> None:
        """An end in good order says nothing against a bundle."""
        if (trial := self._state.trial) is not None and trial.starts:
            self._set(
                self._state.model_copy(update={"trial": Trial(held=trial.held, starts=trial.starts - 1)})
            )

    def _set(self, state: State) -> bool:
        """Remember this; whether it is on disk. What runs goes on without, but for a new bundle."""
        if state == self._state:
            return True
        try:
            write_state(self._folder.path, state)
        except OutputError as error:
            log.error("%s", error)
            if state.trial is not None and self._state.trial is None:
                return False
            self._state = state
            return False
        self._state = state
        return True

    def _clean(self) -> None:
        kept = list(self._state.held)
        if self._state.trial is not None:
            kept.append(self._state.trial.held)
        self._folder.clean(kept)

    # --- the channel ---

    async def _next_bundle(self) -> Held:
        """The next bundle that the channel names and that may be tried, pulled."""
        pause, first = RESTART_FIRST, True
        while True:
            if self._state.current is not None:
                # A fleet that is switched on at once does not ask at once.
                share = random.uniform(0.0, 0.2) if first else random.uniform(0.8, 1.2)
                await self._sleep(self._terms.every * share)
            first = False
            try:
                found = await self._look()
            except OfframpError as error:
                self._metrics.polls.labels("failed").inc()
                log.warning("%s", error)
                if self._state.current is None:
                    await self._sleep(min(pause, self._terms.every))
                    pause *= 2
                continue
            if found is not None:
                self._metrics.polls.labels("changed").inc()
                return found
            older = self._older is not None and self._older == self._known
            self._metrics.polls.labels("older" if older else "unchanged").inc()
            if self._state.current is None:
                await self._sleep(self._terms.every)

    async def _look(self) -> Held | None:
        """A bundle that was not known. Raises OfframpError."""
        now, current = time.time(), self._state.current
        known = self._known
        if (
            known is not None
            and self._state.refusal_of(known) is not None
            and self._state.may_try(known, now)
        ):
            known = None if current is None else current.artifact
        artifact = await self._channel.look(known)
        if artifact is None:
            return None
        if current is not None and artifact.digest == current.artifact:
            self._known = artifact.digest
            return None
        if not self._state.may_try(artifact.digest, now):
            self._known = artifact.digest
            return None
        oldest = UNDATED if current is None or self._terms.allow_older else current.signed
        found = await self._channel.fetch(artifact, oldest)
        self._known = artifact.digest
        if isinstance(found, Older):
            self._older = artifact.digest
            log.warning(
                "bundle %s was signed at %s, the current one at %s: not taken up without --allow-older",
                folder_of(found.bundle),
                date_text(found.signed),
                date_text(oldest),
            )
            return None
        return found

    async def _sleep(self, seconds: float) -> None:
        """So long, or until a poll is asked for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poll_now.wait()
        self._poll_now.clear()

    # --- waiting ---

    async def _read(self, client: httpx.AsyncClient, running: Held) -> Figures | None:
        """What the command's page says; None where it cannot be read, or is not this bundle's."""
        if self._terms.metrics_url is None:
            return None
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                page = read_page(await fetch(client, self._terms.metrics_url), time.monotonic())
        except (TimeoutError, PageError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            log.debug("metrics page: %s", printable(str(error) or type(error).__name__))
            return None
        return figures_of(page) if is_of(page, running.bundle) else None

    async def _first_of(self, *others: asyncio.Future[Any] | None, seconds: float | None = None) -> None:
        """Until one of these is done, the follower is stopped, or so long."""
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        waited = {stopping, *(each for each in others if each is not None)}
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
