"""A program's end: one line for what went wrong, an exit status, and an end whatever still runs."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from offramp.common.errors import ExitCode, OfframpError
from offramp.common.pause import pause

UNWIND_SECONDS = 5.0
"""How long what still runs may take once the program is done."""


def exit_status(program: str, body: Callable[[], int]) -> int:
    """What the body of a program returns, or of the error that ended it: one line, a traceback for a bug."""
    try:
        return body()
    except OfframpError as error:
        with suppress(OSError):
            print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


def end_process(status: int) -> None:
    """End the process with this status, within UNWIND_SECONDS; the last that a program calls.

    The interpreter waits for every thread, however long. One that never ends would keep a failed program
    alive and deaf to signals, and whoever restarts it would wait as well. Threads and exit functions have
    their turn, as at any end; modules are not taken apart, which is a fifth of a short run's processor time.
    """
    try:
        threading.Thread(target=_end_later, args=(status,), daemon=True).start()
    except RuntimeError:  # no thread to be had, which may be why it ends
        _end_now(status)
    # As multiprocessing ends a child. A Python without these takes the modules apart as well.
    with suppress(AttributeError):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _end_now(status)


def _end_later(status: int) -> NoReturn:
    pause(UNWIND_SECONDS)
    _end_now(status)


def _end_now(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
