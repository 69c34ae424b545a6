"""Real processes and real sockets for tests: programs under test, a counting proxy, raw TCP peers.

Everything waits for a condition, no longer than ``WAIT`` seconds; ``Processes`` ends what it started, and
fails the test whose program printed a traceback or a complaint of asyncio.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prometheus_client.parser import text_string_to_metric_families

WAIT = 90.0
"""Seconds until a test gives up on a condition: many times what it takes on a busy machine."""
TROUBLE = re.compile(
    r"Traceback|never retrieved|never awaited|ResourceWarning|Exception ignored|Task was destroyed"
    r"|Exception in|Fatal Python error|RuntimeWarning"
)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT:g} s for {what}"
        time.sleep(0.01)


class Program:
    """One process. Its output is collected as it comes."""

    def __init__(self, command: Sequence[str], **popen: Any) -> None:
        self.command = list(command)
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._records: list[dict[str, Any]] = []
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | popen
        self.process = subprocess.Popen(
            self.command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", **options
        )
        pipes = ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        self._readers = [
            threading.Thread(target=_collect, args=(pipe, lines), daemon=True)
            for pipe, lines in pipes
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return "\n".join(self.stderr)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of ``--json`` output so far, each parsed once."""
        self._records += [json.loads(line) for line in self.stdout[len(self._records) :]]
        return list(self._records)

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The records of answered images so far."""
        return [record for record in self.records if "source" in record]

    @property
    def summary(self) -> dict[str, Any]:
        """The one summary, which is the last line."""
        *before, last = self.records
        assert not any("summary" in record for record in before)
        summary: dict[str, Any] = last["summary"]
        return summary

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match on stderr, once it is there."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.errors)

        until(lambda: found() or self.process.poll() is not None, f"{pattern!r} of {self.command[0]}")
        until(lambda: found() or not any(reader.is_alive() for reader in self._readers), pattern)
        match = found()
        assert match is not None, f"no {pattern!r}, but status {self.process.poll()}: {self.errors}"
        return match

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, with all of its output read."""
        status = self.process.wait(WAIT)
        for reader in self._readers:
            reader.join(WAIT)
        return status

    def end(self) -> None:
        """Kill it if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _collect(pipe: IO[str], lines: list[str]) -> None:
    for line in pipe:
        lines.append(line.rstrip("\n"))  # noqa: PERF401 - others read the list while it grows


FIXED = ("--max-batch", "16", "--max-wait-ms", "0")
"""With both a server has nothing to measure at its start, which takes a third of it. A test's own flags come
behind these."""


class Server(Program):
    """A ``cloud-server`` or another program of its kind that is listening.

    measures: how large its batches are to be, as it does where nothing is said.
    """

    def __init__(
        self,
        bundle: Path,
        *flags: object,
        listen: str = "127.0.0.1:0",
        python: Sequence[str] = (),
        program: str = "",
        measures: bool = False,
        **popen: Any,
    ) -> None:
        command = [sys.executable, *python, "-m", "offramp.server.app", "--bundle", str(bundle)]
        if program:
            command[-4:-2] = ["-c", f"from offramp.server.app import main; main(program={program!r})"]
        command += ["--listen", listen, "--metrics-port", "0", "--threads", "1"]
        command += [*(() if measures else FIXED), *map(str, flags)]
        super().__init__(command, **popen)
        try:
            match = self.wait_for(r"listening on \S+:(\d+), metrics on (\S+:\d+)")
        except BaseException:
            self.end()
            raise
        self.port = int(match[1])
        self.address = f"127.0.0.1:{self.port}"
        self.metrics_url = f"http://{match[2]}/metrics"

    def metrics(self) -> dict[str, float]:
        """Its metrics page."""
        return scrape(self.metrics_url)

    def drain(self) -> int:
        """SIGTERM, and its exit status."""
        self.send(signal.SIGTERM)
        return self.wait()


def scrape(url: str) -> dict[str, float]:
    """A metrics page: ``name{label=value,…}`` → value; labels are left out where there are none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=WAIT) as response:
        text = response.read().decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values


class Processes:
    """Starts programs for one test and ends them with it."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self._programs: list[Program] = []

    def start(self, command: Sequence[str], **popen: Any) -> Program:
        """Any program."""
        program = Program(command, **popen)
        self._programs.append(program)
        return program

    def server(self, *flags: object, bundle: Path | None = None, **options: Any) -> Server:
        """A ``cloud-server``, listening."""
        server = Server(bundle or self.bundle, *flags, **options)
        self._programs.append(server)
        return server

    def start_device(self, *arguments: object, bundle: Path | None = None, **popen: Any) -> Program:
        """An ``edge-device``, running."""
        command = [sys.executable, "-m", "offramp.device.app", "--bundle", str(bundle or self.bundle)]
        return self.start([*command, *map(str, arguments)], **popen)

    def device(self, *arguments: object, **options: Any) -> tuple[int, Program]:
        """An ``edge-device`` that has ended, and its exit status."""
        program = self.start_device(*arguments, **options)
        return program.wait(), program

    def end(self) -> None:
        """Kill what still runs; fail if a program complained."""
        for program in reversed(self._programs):
            program.end()
        for program in self._programs:
            assert not TROUBLE.search(program.errors), f"{program.command}:\n{program.errors}"


@contextmanager
def processes(bundle: Path) -> Iterator[Processes]:
    """Programs that run no longer than the block."""
    started = Processes(bundle)
    try:
        yield started
    except BaseException:
        for program in started._programs:
            program.end()
            print(f"{program.command}:\n{program.errors}", file=sys.stderr)
        raise
    started.end()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Peer:
    """A listening TCP socket of a test."""

    port: int
    connections: int = 0
    """How many were made."""
    up: int = 0
    """Bytes that clients sent."""
    down: int = 0
    """Bytes that clients were sent."""


@contextmanager
def tcp_peer(handle: Callable[[socket.socket, Peer], None]) -> Iterator[Peer]:
    """Calls ``handle`` on a thread of its own for each connection; at the end all sockets are shut down."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    peer = Peer(listener.getsockname()[1])
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def work(connection: socket.socket) -> None:
        try:
            handle(connection, peer)
        except OSError:
            pass  # the other side went first
        finally:
            connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            peer.connections += 1
            sockets.append(connection)
            thread = threading.Thread(target=work, args=(connection,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield peer
    finally:
        # Closing alone would not wake the thread that waits in accept.
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(WAIT)
        listener.close()
        for connection in sockets:
            _shut(connection, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(WAIT)


@contextmanager
def counting_proxy(port: int) -> Iterator[Peer]:
    """Passes connections on to this port and counts the bytes of both directions."""

    def handle(client: socket.socket, peer: Peer) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client, "down", peer), daemon=True)
            back.start()
            pump(client, server, "up", peer)
            back.join(WAIT)

    def pump(source: socket.socket, sink: socket.socket, direction: str, peer: Peer) -> None:
        try:
            while data := source.recv(1 << 16):
                setattr(peer, direction, getattr(peer, direction) + len(data))
                sink.sendall(data)
        except OSError:
            _shut(source, socket.SHUT_RDWR)
        _shut(sink, socket.SHUT_WR)

    with tcp_peer(handle) as peer:
        yield peer


def _shut(connection: socket.socket, how: int) -> None:
    with suppress(OSError):
        connection.shutdown(how)
