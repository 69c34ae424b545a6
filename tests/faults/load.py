"""An ``edge-device`` under steady load, and the account that it must give of every image.

``Load`` feeds paths to a real process until it is stopped; ``Load.finish`` then checks what must hold
whatever happened meanwhile: one answer for each image, counters that agree with the answers and with each
other, and no descriptor, thread or memory that stays behind.

Whatever else a device may do meanwhile is on: each early exit is audited, each image is kept as a sample, and
its page has a viewer. None of it may change an answer, and each has to account for what it did.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from offramp.cli.samples import read
from offramp.device.metrics import AUDIT_RESULTS, SAMPLE_CAUSES
from offramp.device.samples.record import read_file
from tests.processes import WAIT, Processes, Program, Server, resident_bytes, scrape, until

FAST = ("--workers", 1, "--max-batch", 16, "--max-wait-ms", 0)
"""Flags of a server that has nothing to measure when it starts."""
RATE = 130.0
"""Images a second, about."""
THRESHOLD = 0.75
"""A quarter of the toy's images exit early; seven in ten of their audits differ."""
SPARE_FILES, SPARE_THREADS, SPARE_BYTES = 6, 6, 48 << 20
"""What a process may have more than when it had just begun: pools that grow to their size, a socket that
gRPC closes in its own time."""
CAUSES = ("timeout", "refused", "unavailable", "breaker", "window", "closed", "picture")
DEVICE, SERVER = "offramp_device_", "offramp_server_"


class Holdings:
    """Descriptors, threads and memory of a process, now and later."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files, self._threads = self._count("fd"), self._count("task")
        self._bytes = resident_bytes(pid)

    def _count(self, what: str) -> int:
        return len(os.listdir(f"/proc/{self._pid}/{what}"))

    def check(self) -> None:
        """Wait until it is back to what it was."""
        until(lambda: self._count("fd") <= self._files + SPARE_FILES, "its files to be closed")
        until(lambda: self._count("task") <= self._threads + SPARE_THREADS, "its threads to end")
        assert resident_bytes(self._pid) <= self._bytes + SPARE_BYTES


class Viewer:
    """Reads a device's page as a browser does, until the device ends."""

    def __init__(self, address: str) -> None:
        self.states: list[dict[str, Any]] = []
        self._address = address
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=WAIT)
        with closing(connection), suppress(OSError):
            connection.request("GET", "/events", headers={"Sec-Fetch-Site": "same-origin"})
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    self.states.append(json.loads(line[6:]))

    def check(self, account: Account) -> None:
        """The device has ended: it has seen what the device said."""
        self._thread.join(WAIT)
        assert not self._thread.is_alive() and self.states
        seen = {each["index"]: each for each in self.states[-1]["recent"]}
        assert seen
        for record in account.records:
            if record["index"] in seen:
                assert seen[record["index"]]["label"] == record["label"]


class Load:
    """One device, fed with the same few images again and again."""

    def __init__(
        self, run: Processes, images: Path, flags: Sequence[object], kept: Path | None, **popen: Any
    ) -> None:
        self._names = sorted(str(path) for path in images.glob("*.png"))
        more = () if kept is None else ("--page", "--audit", 1, "--keep", kept, "--keep-share", 1)
        self._kept = kept
        self.device: Program = run.start_device(
            *("--threshold", THRESHOLD, "--json", "--hold", "--metrics-port", 0, "--quiet"),
            *(*more, *flags, "-"),
            stdin=subprocess.PIPE,
            **popen,
        )
        address = self.device.wait_for(r"metrics on (\S+)")[1]
        self._url = f"http://{address}/metrics"
        self._viewer = None if kept is None else Viewer(address)
        self.sent = 0
        self.paused = threading.Event()
        """Set: no image is handed in."""
        self._stop = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()
        self.holdings: Holdings | None = None

    def _feed(self) -> None:
        pipe = self.device.process.stdin
        assert pipe is not None
        with pipe:
            while not self._stop.wait(1 / RATE):
                if self.paused.is_set():
                    continue
                pipe.write(self._names[self.sent % len(self._names)] + "\n")
                pipe.flush()
                self.sent += 1

    def metrics(self) -> dict[str, float]:
        """The device's page."""
        return scrape(self._url)

    def value(self, name: str) -> float:
        """One of its metrics, without the prefix."""
        return self.metrics()[DEVICE + name]

    def answered_by(self, source: str) -> int:
        """How many images have been answered by this source."""
        return int(self.value(f"images_total{{source={source}}}"))

    def more(self, source: str, count: int = 20) -> None:
        """Wait until so many more images are answered by this source."""
        most = self.answered_by(source) + count
        until(lambda: self.answered_by(source) >= most, f"{count} more answers by {source}")

    def rest(self) -> None:
        """Hand in nothing until ``paused`` is cleared, and wait for what is under way."""
        self.paused.set()

        def answered() -> int:
            return sum(self.answered_by(each) for each in ("early_exit", "server", "fallback"))

        until(lambda: answered() == self.sent, "all answers")

    def warmed_up(self) -> None:
        """The load has begun; from here on nothing may stay behind."""
        self.more("server")
        self.holdings = Holdings(self.device.pid)

    def finish(self) -> Account:
        """Stop feeding; check that the account of all images is right, and return it."""
        self._stop.set()
        self._feeder.join(WAIT)
        until(lambda: self.device.stdout and '"summary"' in self.device.stdout[-1], "the summary")
        if self.holdings is not None:
            self.holdings.check()
        page = self.metrics()
        self.device.send(signal.SIGTERM)
        status = self.device.wait()
        account = Account(self.sent, status, self.device, page)
        account.check()
        if self._viewer is not None:
            self._viewer.check(account)
        if self._kept is not None:
            account.check_samples(self._kept)
        return account

    def end(self) -> None:
        """Stop feeding."""
        self._stop.set()
        self._feeder.join(WAIT)


class Account:
    """What a device said of its images, by record, summary and metrics."""

    def __init__(self, sent: int, status: int, device: Program, page: dict[str, float]) -> None:
        self.sent = sent
        self.status = status
        self.records = device.answers
        self.corrections = [record for record in device.records if record.get("correction")]
        self.summary = device.summary
        self.errors = device.errors
        self.audits: dict[str, int] = self.summary.get("audits") or dict.fromkeys(AUDIT_RESULTS, 0)
        self._page = page
        self.by = Counter(record["source"] for record in self.records)
        self.fallbacks = [record for record in self.records if record["source"] == "fallback"]

    def value(self, name: str) -> float:
        """One of the device's metrics at the end, without the prefix."""
        return self._page[DEVICE + name]

    def unanswered(self) -> dict[str, int]:
        """Frames without an answer, by cause."""
        return {cause: int(self.value(f"frames_unanswered_total{{cause={cause}}}")) for cause in CAUSES}

    def pictures(self, result: str) -> int:
        """Pictures that were answered, or were not."""
        return int(self.value(f"pictures_total{{result={result}}}"))

    @property
    def fell_back(self) -> bool:
        """Whether any image had to do without the server."""
        return self.by["server"] + self.by["early_exit"] < self.sent

    @property
    def answered(self) -> int:
        """Frames that the server answered in time: images and audits."""
        return self.by["server"] + self.audits["agrees"] + self.audits["differs"]

    @property
    def sends(self) -> int:
        """Activations that went out, each time counted."""
        raw = self.value("raw_activation_bytes_total")
        assert raw % 64 == 0  # the toy's activation
        return int(raw) // 64

    def check(self) -> None:
        """What holds in every fault."""
        # One answer for each image.
        assert sorted(record["index"] for record in self.records) == list(range(self.sent))
        assert self.summary["images"] == self.sent and self.summary["unreadable"] == 0
        for source in ("early_exit", "server", "fallback"):
            count = self.by[source]
            assert self.summary[source] == count == self.value(f"images_total{{source={source}}}"), source
        assert all(record["reason"] for record in self.fallbacks)
        assert not any("reason" in record for record in self.records if record["source"] == "server")
        # Each frame without an answer has one cause, and what went out is what the records say.
        given_up = len(self.fallbacks) + self.pictures("unanswered")
        assert sum(self.unanswered().values()) >= given_up
        spooled = sum(record["spooled"] for record in self.corrections)
        answered = self.by["server"] + self.pictures("answered") + spooled
        assert self.value("round_trip_seconds_count") == answered
        assert self.summary["corrections"] == len(self.corrections)
        if not self.value("spooled_total"):
            assert sum(self.unanswered().values()) == given_up
            paid = sum(record["payload_bytes"] for record in self.records)
            assert paid == self.summary["payload_bytes"]
            assert paid == self.value("payload_bytes_total") - self.value("audit_bytes_total")
        assert self.value("connected") == 0
        # Each early exit that is audited has one outcome, and no image paid for it.
        assert self.audits == {
            result: int(self.value(f"audits_total{{result={result}}}")) for result in self.audits
        }
        if "audits" in self.summary:
            assert sum(self.audits.values()) == self.by["early_exit"]
        assert not any(r["payload_bytes"] for r in self.records if r["source"] == "early_exit")

    def check_samples(self, folder: Path) -> None:
        """Each image was kept once, or given up once, and what is kept is whole."""
        dropped = sum(self.value(f"samples_dropped_total{{cause={cause}}}") for cause in SAMPLE_CAUSES)
        assert self.value("samples_kept_total{reason=random}") + dropped == self.sent
        found = read(folder)
        assert not found.unusable and len(found.samples) == self.value("samples_entries")
        for sample in found.samples:
            assert read_file(sample, folder).endswith(b"IEND\xaeB`\x82")
        differing = [each for each in found.samples if "audit" in each.reasons]
        assert len(differing) <= self.audits["differs"]
        answers = {record["index"]: record for record in self.records}
        for each in found.samples:
            answer = answers[each.index]
            assert (each.source, each.class_index) == (answer["source"], answer["class_index"])


@contextmanager
def load(
    run: Processes,
    images: Path,
    *flags: object,
    plain: bool = False,
    keep: Path | None = None,
    **popen: Any,
) -> Iterator[Load]:
    """A load that ends with its block, if it was not finished in it.

    plain: without audits, samples and page.
    """
    with tempfile.TemporaryDirectory(prefix="kept-") as folder:
        kept = None if plain else Path(folder) if keep is None else keep
        made = Load(run, images, flags, kept, **popen)
        try:
            yield made
        finally:
            made.end()


def frames_of(server: Server) -> dict[str, int]:
    """What became of the frames that a server has read, and how many there were: ``total``."""
    page = server.metrics()
    found = {
        result: int(page[f"{SERVER}frames_total{{result={result}}}"])
        for result in ("answered", "refused", "abandoned")
    }
    return {**found, "total": sum(found.values())}
