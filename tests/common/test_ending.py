"""A program ends with its status, also where a thread of it never does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from offramp.common.ending import exit_status
from offramp.common.errors import BundleError, ExitCode
from tests.processes import WAIT

STUCK = """
import sys, threading
from offramp.common import ending
from offramp.common.errors import ConfigError
ending.UNWIND_SECONDS = 0.1
def body():
    threading.Thread(target=threading.Event().wait).start()
    {body}
status = ending.exit_status("program", body)
{before}
ending.end_process(status)
sys.exit(status)
"""
NO_MORE = """
def refuse(self): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
"""


@pytest.mark.parametrize("before", ["", NO_MORE], ids=["threads", "no more threads"])
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise ConfigError('a flag is wrong')", 2, "program: a flag is wrong"),
        ("raise RuntimeError('x')", 1, "RuntimeError: x"),
        ("return 0", 0, ""),
    ],
)
def test_a_thread_that_never_ends_keeps_no_program_alive(
    before: str, body: str, status: int, message: str
) -> None:
    code = STUCK.format(body=body, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == status
    assert done.stderr.strip().endswith(message)
    assert ("Traceback" in done.stderr) == (status == 1)


ORDERLY = """
import atexit, sys, threading, time
from offramp.common.ending import end_process
class Taken:
    def __del__(self): print("taken apart")
kept = Taken()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
sys.stdout.write("unflushed ")
end_process(7)
"""


def test_threads_and_exit_functions_have_their_turn_and_modules_are_not_taken_apart() -> None:
    done = subprocess.run([sys.executable, "-c", ORDERLY], capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout, done.stderr) == (7, "unflushed thread\nexit function\n", "")


def test_an_error_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise BundleError("it is damaged")

    assert exit_status("cloud-server", body) is ExitCode.BUNDLE
    assert capsys.readouterr().err == "cloud-server: it is damaged\n"
