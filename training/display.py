"""Progress for people: on a terminal a bar with the time that is left, elsewhere a line every ten seconds."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn, Protocol, Self, TextIO

from tqdm import tqdm

_LONGEST = 60.0
"""Between two lines that say that it still works; the first come sooner."""


class Bar(Protocol):
    """A progress bar: moved to a position of a total, which may change, with a text behind it."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


class Screen:
    """Lines and bars on stderr. As a context it also says that it still works, where nothing else is said.

    stream: None: stderr as it is then. seconds: between two lines. clock: monotonic.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._seconds, self._clock = stream, seconds, clock
        self._said = self._alive = clock()
        self._pause = seconds
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._watch = threading.Thread(target=self._watching, daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    @property
    def stream(self) -> TextIO:
        """Where it writes."""
        return sys.stderr if self._stream is None else self._stream

    def say(self, line: str) -> None:
        """One line, above a bar."""
        tqdm.write(line, file=self.stream)
        self._said = self._alive = self._clock()
        self._pause = self._seconds

    def look(self) -> None:
        """Say that it still works, if nothing has moved for long enough; called every second."""
        now = self._clock()
        if now - self._alive >= self._pause:
            tqdm.write(f"still working, {now - self._said:,.0f} s after the line above", file=self.stream)
            self._alive, self._pause = now, min(_LONGEST, 2 * self._pause)

    def _watching(self) -> None:
        while not self._ended.wait(1.0):
            self.look()

    @contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        """A bar of one stage; nothing is drawn before it moves."""
        if not self.stream.isatty():
            yield self.lines(name)
            return
        shown: list[tqdm[NoReturn]] = []

        def move(done: int, total: int, text: str = "") -> None:
            if not shown:
                shown.append(tqdm(total=total, desc=name, leave=False, file=self.stream, dynamic_ncols=True))
            bar = shown[0]
            if done < bar.n:
                bar.reset(total)
            bar.total = total
            if text:
                bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)
            self._alive, self._pause = self._clock(), self._seconds

        try:
            yield move
        finally:
            for bar in shown:
                bar.close()

    def lines(self, name: str) -> Bar:
        """A bar as lines: how far it is, and the seconds that are left."""
        began = last = self._clock()
        first = 0
        before: float = math.inf

        def move(done: int, total: int, text: str = "") -> None:
            nonlocal last, first, began, before
            now = self._alive = self._clock()
            self._pause = self._seconds
            if done < before:
                # The first call, or another count: how fast it is shows from here on.
                first, began, last = done, now, now
            before = done
            if done >= total or now - last < self._seconds:
                return
            last = now
            left = (now - began) * (total - done) / max(1, done - first)
            more = f", {text}" if text else ""
            self.say(f"{name}: {done:,} of {total:,}{more}; {left:,.0f} s left")

        return move
