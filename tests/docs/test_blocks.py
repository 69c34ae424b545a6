"""The blocks of shell and Python in the documentation do what they say.

Rule: in README.md, CONTRIBUTING.md and all pages of docs/ every block marked ``sh`` or ``python`` is run,
from the root of the repository, in the order of its page; Python blocks of a page share their names. Before
one that cannot be run here stands ``<!-- skip: next "the reason" -->``. Where a block says 127.0.0.1:50051 it
meets a real server on a port of its own; 50052, 9101 and 9102 become free ports. What a block leaves running
is ended with it.

A block marked ``text`` is the output of the ``sh`` block before it: line by line, but for times, ports and
the connection's own bytes; ``…`` stands for anything, on a line of its own for any lines.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests.processes import Server, processes

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
SECONDS = 100
VARIES = [
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"[\d,]+ B sent, [\d,]+ B received", "CONNECTION"),
    (r"[\d,]+(\.\d+)? (ms|s|images/s)\b", "TIME"),
    (r'"((latency|decode|tcp)\w*|seconds|message_bytes|wire_bytes)": ([\d.e-]+|\{.*?\})', "TIME"),
]
"""What differs from run to run, and what stands for it."""
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```sh\n" in (text := page.read_text()) or "```python\n" in text
]


def placed(text: str, server: Server) -> str:
    """The block with addresses of this test."""
    text = text.replace("127.0.0.1:50051", server.address)
    names = ("50052", "9101", "9102")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    for name, each in zip(names, sockets, strict=True):
        text = text.replace(name, str(each.getsockname()[1]))
        each.close()
    return text


def run_shell(example: Example, server: Server) -> None:
    """Run a block as a script that stops at its first error."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # A file, not a pipe: what runs in the background would hold a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", placed(str(example.parsed), server)],
            cwd=ROOT, env=os.environ | {"PATH": path}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status = shell.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"line {example.line}: still runs after {SECONDS} s") from None
        finally:
            # The whole session: also what the block put into the background.
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        output.seek(0)
        printed = output.read()
        assert status == 0, f"line {example.line}: status {status}\n{printed}"
        example.namespace["printed"] = printed


def settled(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, name in VARIES:
        text = re.sub(pattern, name, text)
    return text


def expected(text: str) -> re.Pattern[str]:
    """A pattern of an output as a page shows it."""
    lines = [
        r"(.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n"
        for line in settled(text).rstrip("\n").split("\n")
    ]
    return re.compile("".join(lines))


def compare_output(example: Example) -> None:
    """Hold a ``text`` block against what the block before it printed."""
    assert "printed" in example.namespace, f"line {example.line}: no block was run before this output"
    printed = settled(example.namespace["printed"])
    assert expected(str(example.parsed)).fullmatch(printed), f"line {example.line}: printed\n{printed}"


def run_python(example: Example, server: Server) -> None:
    """Run a block in the names of its page."""
    code = compile(placed(str(example.parsed), server), f"{example.path}:{example.line}", "exec")
    exec(code, example.namespace)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with processes(BUNDLE) as started:
        yield started.server("--max-batch", 8, "--max-wait-ms", 0, "--workers", 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parsers: list[Callable[[Document], Iterable[Region]]] = [
        CodeBlockParser(language="sh", evaluator=partial(run_shell, server=server)),
        CodeBlockParser(language="python", evaluator=partial(run_python, server=server)),
        CodeBlockParser(language="text", evaluator=compare_output),
        SkipParser(),
    ]
    blocks = 0
    for example in Sybil(parsers, path=str(ROOT)).parse(page).examples():
        if isinstance(example.parsed, tuple):
            assert example.parsed[1], f"{page.name}, line {example.line}: skips without a reason"
        else:
            blocks += 1
        with suppress(SkipTest):
            example.evaluate()
    text = page.read_text()
    languages = ("sh", "python", "text")
    assert blocks == sum(text.count(f"```{name}\n") for name in languages), "a block was not found"


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("1 image, 0.35 ms", "1 image, 4.2 ms\n", True),
        ("1 image, 0.35 ms", "2 images, 0.35 ms\n", False),
        ("first\n…\nlast", "first\nlast\n", True),
        ("first\n…\nlast", "first\n2\n3\nlast\n", True),
        ("first\n…\nlast", "first\n2\n", False),
        ("on 127.0.0.1:1, … left", "on 127.0.0.1:50051, 3 left\n", True),
        ("a (b)", "a b\n", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, fits: bool) -> None:
    assert bool(expected(shown).fullmatch(settled(printed))) is fits
