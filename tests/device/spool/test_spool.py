"""The spool: bounded, oldest first, delivered once, and never in the way of an answer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.device.metrics import DeviceMetrics
from offramp.device.spool import spool as spool_module
from offramp.device.spool import store as spool_store
from offramp.device.spool import trouble
from offramp.device.spool.spool import Spool
from offramp.device.spool.store import ROW_BYTES, Entry, Rules, Store, rules_of
from offramp.link.link import Answer, Cause, Link, Outcome, Refusal
from tests.processes import until

ANSWER = Answer(1, 0.75, 0.001, 10.0, 20.0)
CAPACITY = 1 << 20


class FakeLink:
    """Takes frames while ``up``, and answers each with ``outcome`` at once, or when the test says so."""

    def __init__(self) -> None:
        self.up = False
        self.outcome: Outcome | None = ANSWER
        self.sent: list[bytes] = []
        self.held: list[Callable[[Outcome], None]] = []

    def offload(
        self, _: CodecId, payload: bytes, done: Callable[[Outcome], None], *, background: bool
    ) -> None:
        assert background
        if not self.up:
            done(Refusal("gives way", Cause.WINDOW))
            return
        self.sent.append(payload)
        if self.outcome is None:
            self.held.append(done)
        else:
            done(self.outcome)


class Spooled:
    """A spool, its link, and what it delivered."""

    def __init__(
        self,
        path: Path,
        bundle: Bundle,
        capacity: int,
        check: Callable[[Entry], None] = lambda _: None,
    ) -> None:
        self.metrics = DeviceMetrics(bundle)
        self.link = FakeLink()
        self.delivered: list[Entry] = []
        self.spool = Spool(
            path,
            capacity,
            Rules(bundle.digest, CAPACITY, 12, check),
            cast(Link, self.link),
            self.metrics,
            lambda entry, _: self.delivered.append(entry),
        )

    def put(self, *indices: int, size: int = 100) -> None:
        """Spool an activation for each."""
        for index in indices:
            self.spool.put(
                Entry(CodecId.BUNDLE, index.to_bytes(4, "big") * (size // 4), index, f"{index}.png")
            )

    def written(self, count: int) -> None:
        """Wait until so many have been written or given up."""
        until(
            lambda: (
                self.sample("spooled_total") + self.dropped("busy") >= count and self.spool._fresh.empty()
            ),
            f"{count} rows",
        )

    def sample(self, name: str, **labels: str) -> float:
        """One of the device's metrics."""
        value = self.metrics.registry.get_sample_value(f"offramp_device_{name}", labels)
        assert value is not None
        return value

    def dropped(self, cause: str) -> float:
        """How many were given up for this."""
        return self.sample("spool_dropped_total", cause=cause)


@pytest.fixture
def spooled(toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A spool in this folder that is closed with its block."""
    monkeypatch.setattr(spool_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(trouble, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(trouble, "RETRY_SECONDS_MOST", 0.05)

    @contextmanager
    def make(capacity: int = CAPACITY, path: Path = tmp_path / "spool") -> Iterator[Spooled]:
        made = Spooled(path, toy_bundle, capacity)
        try:
            yield made
        finally:
            made.spool.close()
        assert not made.spool._thread.is_alive()

    return make


def rows(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT image_index FROM activations ORDER BY id")]


def test_what_is_put_in_comes_out_in_order_once(spooled: Callable[..., Any], tmp_path: Path) -> None:
    with spooled() as it:
        it.put(*range(50))
        it.written(50)
        assert it.sample("spool_entries") == 50 and not it.delivered
        assert it.sample("spool_bytes") == sum(
            Entry(CodecId.BUNDLE, bytes(100), index, f"{index}.png").size for index in range(50)
        )
        it.link.up = True
        until(lambda: len(it.delivered) == 50, "all of them")
        assert it.spool.wait_empty(60)
        assert [entry.index for entry in it.delivered] == list(range(50))
        assert [entry.name for entry in it.delivered] == [f"{index}.png" for index in range(50)]
        assert it.sample("spool_entries") == it.sample("spool_bytes") == 0
    assert rows(tmp_path / "spool") == []


def test_it_outlives_the_process(spooled: Callable[..., Any]) -> None:
    with spooled() as it:
        it.put(1, 2, 3)
    with spooled() as it:
        it.link.up = True
        until(lambda: len(it.delivered) == 3, "those of the first run")
        assert [entry.index for entry in it.delivered] == [1, 2, 3]


def test_a_file_of_an_older_release_is_read(
    spooled: Callable[..., Any], toy_bundle: Bundle, tmp_path: Path
) -> None:
    """Its rows have no early exit's answer."""
    with closing(sqlite3.connect(tmp_path / "spool")) as database, database:
        database.execute(
            "CREATE TABLE activations (id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL, "
            "codec INTEGER NOT NULL, payload BLOB NOT NULL, image_index INTEGER NOT NULL, "
            "name TEXT NOT NULL, wall_time REAL NOT NULL)"
        )
        database.execute(
            "INSERT INTO activations (digest, codec, payload, image_index, name, wall_time) "
            "VALUES (?, 0, x'abcd', 7, '7.png', 0)",
            (toy_bundle.digest,),
        )
    new = Entry(CodecId.BUNDLE, b"new", 8, "8.png", early=bytes(12))
    with spooled() as it:
        it.spool.put(new)
        it.written(1)
        it.link.up = True
        until(lambda: len(it.delivered) == 2, "both")
    assert it.delivered == [Entry(CodecId.BUNDLE, b"\xab\xcd", 7, "7.png"), new]


def test_the_oldest_go_first(spooled: Callable[..., Any], tmp_path: Path) -> None:
    one = 100 + ROW_BYTES + len("100.png")
    with spooled(capacity=10 * one) as it:
        for start in range(100, 140, 5):
            it.put(*range(start, start + 5))
            it.written(start - 95)
        assert it.sample("spool_entries") == 10 and it.sample("spool_bytes") <= 10 * one
        assert it.dropped("full") == 30
    assert rows(tmp_path / "spool") == list(range(130, 140))


def test_the_file_stays_bounded(spooled: Callable[..., Any], tmp_path: Path) -> None:
    capacity = 200_000
    with spooled(capacity=capacity) as it:
        for start in range(0, 2000, 20):
            it.put(*range(start, start + 20), size=4000)
            it.written(start + 20)
        total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total <= 4 * capacity + (2 << 20)


def test_one_that_can_never_fit_is_given_up(spooled: Callable[..., Any], tmp_path: Path) -> None:
    with spooled(capacity=5000) as it:
        it.put(1)
        it.written(1)
        it.put(2, size=8000)
        until(lambda: it.dropped("full") == 1, "the large one")
    assert rows(tmp_path / "spool") == [1]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A file takes until this is set to be opened."""
    go = threading.Event()
    real = Store.open

    def slow(self: Store) -> int:
        go.wait(60)
        return real(self)

    monkeypatch.setattr(Store, "open", slow)
    yield go
    go.set()


def test_memory_is_bounded_while_the_disk_is_slow(
    slow_disk: threading.Event, spooled: Callable[..., Any]
) -> None:
    with spooled() as it:
        it.put(*range(1000))
        assert it.dropped("busy") == 1000 - spool_module.WAITING_MOST
        slow_disk.set()


def test_refused_ones_are_given_up_and_others_stay(spooled: Callable[..., Any], tmp_path: Path) -> None:
    with spooled() as it:
        it.put(1)
        it.written(1)
        it.link.outcome = Refusal("no", Cause.REFUSED, sends=1)
        it.link.up = True
        until(lambda: it.dropped("refused") == 1, "the refused one")
        it.link.outcome = Refusal("late", Cause.TIMEOUT, sends=1)
        it.put(2)
        until(lambda: len(it.link.sent) > 3, "more attempts")
        assert it.sample("spool_entries") == 1
        it.link.outcome = ANSWER
        until(lambda: len(it.delivered) == 1, "its answer")
    assert rows(tmp_path / "spool") == []


def test_one_that_was_answered_late_is_not_sent(spooled: Callable[..., Any], tmp_path: Path) -> None:
    entry = Entry(CodecId.RAW, b"twice", 7, "seven\udcff.png")
    with spooled() as it:
        it.spool.put(entry)
        it.put(8)
        it.written(2)
        it.spool.forget(entry)
        until(lambda: it.sample("spool_entries") == 1, "one row less")
        # Also while it is under way.
        it.link.outcome = None
        it.link.up = True
        until(lambda: it.link.held, "the other one under way")
        it.spool.forget(Entry(CodecId.BUNDLE, (8).to_bytes(4, "big") * 25, 8, "8.png"))
        until(lambda: it.sample("spool_entries") == 0, "no row")
        it.link.held[0](ANSWER)
    assert not it.delivered and rows(tmp_path / "spool") == []


def test_one_that_was_answered_before_it_was_written_is_not_sent(
    slow_disk: threading.Event, spooled: Callable[..., Any], tmp_path: Path
) -> None:
    entry = Entry(CodecId.RAW, b"twice", 7, "7.png")
    with spooled() as it:
        it.spool.put(entry)
        it.spool.forget(entry)
        it.put(8)
        it.link.up = True
        slow_disk.set()
        until(lambda: it.delivered and it.sample("spool_entries") == 0, "the other one's answer")
        assert [each.index for each in it.delivered] == [8] and it.link.sent != [b"twice"]
    assert rows(tmp_path / "spool") == []


def test_notices_that_a_slow_disk_cannot_take_are_bounded_and_their_rows_answered_again(
    slow_disk: threading.Event, spooled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "FORGET_MOST", 4)
    entries = [Entry(CodecId.RAW, b"row", index, f"{index}.png") for index in range(10)]
    with spooled() as it:
        for entry in entries:
            it.spool.put(entry)
        for entry in entries:
            it.spool.forget(entry)
        assert it.sample("spool_repeats_total") == 6
        it.link.up = True
        slow_disk.set()
        until(lambda: len(it.delivered) == 6 and it.sample("spool_entries") == 0, "the others' answers")
        assert [each.index for each in it.delivered] == [4, 5, 6, 7, 8, 9]


def test_rows_of_another_bundle_are_left_alone(
    spooled: Callable[..., Any], raw_bundle: Bundle, tmp_path: Path
) -> None:
    other = Spooled(tmp_path / "spool", raw_bundle, CAPACITY)
    other.put(1, 2)
    other.spool.close()
    with spooled() as it:
        it.put(3)
        it.link.up = True
        until(lambda: it.delivered, "this bundle's own")
        assert it.spool.wait_empty(60)
        assert it.sample("spool_entries") == 2
    assert rows(tmp_path / "spool") == [1, 2]


def test_the_file_is_its_owners_only(spooled: Callable[..., Any], tmp_path: Path) -> None:
    with spooled() as it:
        it.put(1)
        it.written(1)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}


# --- disks and files that fail ---


@pytest.mark.parametrize(
    "content", [b"no database at all" * 1000, b"SQLite format 3\0" + bytes(8000)], ids=["text", "zeros"]
)
def test_a_damaged_file_is_set_aside_and_said_once(
    spooled: Callable[..., Any], tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_bytes(content)
    with spooled() as it:
        until(lambda: it.sample("spool_errors_total") >= 1, "the error")

        def again() -> bool:
            it.put(1)
            return bool(it.sample("spooled_total"))

        until(again, "a new file")
        it.link.up = True
        until(lambda: it.delivered, "what came later")
    assert (tmp_path / "spool.damaged").read_bytes() == content
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "answers go on without it" in caplog.text


def test_a_file_that_is_damaged_in_the_middle(spooled: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with spooled() as it:
        it.put(*range(200), size=400)
        it.written(200)
    data = bytearray(path.read_bytes())
    data[5000:60_000] = os.urandom(55_000)
    path.write_bytes(data)
    with spooled() as it:
        it.link.up = True
        it.put(1000)
        until(lambda: it.sample("spool_errors_total") >= 1, "the error")
        until(lambda: it.put(1001) or it.sample("spooled_total") >= 1, "a new file")
        until(lambda: any(entry.index > 999 for entry in it.delivered), "what came later")


def test_a_folder_that_is_not_there_is_tried_again(spooled: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "later" / "spool"
    with spooled(path=path) as it:
        it.put(1)
        until(lambda: it.sample("spool_errors_total") >= 2, "two attempts")
        path.parent.mkdir()
        until(lambda: it.put(2) or it.sample("spooled_total") >= 1, "a row")
    assert 2 in rows(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_once_and_what_fits_is_kept(
    spooled: Callable[..., Any], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with spooled(capacity=10 << 20, path=small_disk / "spool") as it:
        for start in range(0, 400, 20):
            it.put(*range(start, start + 20), size=2000)
            until(lambda: it.spool._fresh.empty(), "the disk")
        until(lambda: it.sample("spool_errors_total") >= 1, "a full disk")
        assert it.sample("spooled_total") > 0 and it.dropped("busy") > 0
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
        it.link.up = True
        until(lambda: it.sample("spool_entries") == 0, "what fitted")
        until(lambda: it.put(999) or any(entry.index == 999 for entry in it.delivered), "room again")
    assert len({entry.index for entry in it.delivered}) >= it.sample("spooled_total") - 50


# --- files of others, and hostile rows ---

LOOSE = (
    "CREATE TABLE activations (id INTEGER PRIMARY KEY AUTOINCREMENT, digest, codec, payload, image_index, "
    "name, wall_time, early)"
)
COLUMNS = ("digest", "codec", "payload", "image_index", "name", "wall_time", "early")


def payload_of(bundle: Bundle, seed: int) -> tuple[int, bytes]:
    """A real activation, coded."""
    codec = bundle.codec
    symbols = np.random.default_rng(seed).integers(0, 3, codec.shape, np.uint8)
    return codec.encode(symbols)


def add_row(database: sqlite3.Connection, bundle: Bundle, index: int, **changed: object) -> None:
    codec, payload = payload_of(bundle, index)
    row = {
        "digest": bundle.digest, "codec": int(codec), "payload": payload, "image_index": index,
        "name": f"{index}.png", "wall_time": 0.0, "early": np.full(3, 1 / 3, np.float32).tobytes(),
    } | changed  # fmt: skip
    names = ", ".join(row)
    database.execute(
        f"INSERT INTO activations ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
    )


BAD = {
    "codec 99": {"codec": 99},
    "codec picture": {"codec": 2},
    "codec text": {"codec": "0"},
    "codec real": {"codec": 0.5},
    "payload long": {"payload": bytes(70_000)},
    "payload raw of another size": {"codec": 1, "payload": bytes(65)},
    "payload garbage": {"codec": 0, "payload": b"\xff" * 40},
    "payload as long as raw": {"codec": 0, "payload": bytes(64)},
    "payload text": {"payload": "in place of bytes"},
    "payload number": {"payload": 7},
    "digest text": {"digest": "x" * 32},
    "digest short": {"digest": bytes(31)},
    "index negative": {"image_index": -1},
    "index real": {"image_index": 1e300},
    "index text": {"image_index": "7"},
    "name bytes": {"name": b"7.png"},
    "name long": {"name": "x" * 100_000},
    "time text": {"wall_time": "now"},
    "early NaN": {"early": np.full(3, np.nan, np.float32).tobytes()},
    "early infinite": {"early": np.array([np.inf, 0, 0], np.float32).tobytes()},
    "early negative": {"early": np.array([2, -1, 0], np.float32).tobytes()},
    "early sums to 3": {"early": np.ones(3, np.float32).tobytes()},
    "early long": {"early": bytes(16)},
    "early short": {"early": bytes(3)},
    "early text": {"early": "123456789012"},
    "id negative": {"id": -5},
    "id at the end": {"id": (1 << 63) - 1},
    **{f"{name} NULL": {name: None} for name in COLUMNS},
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_row_is_dropped_and_the_others_are_delivered(
    toy_bundle: Bundle,
    tmp_path: Path,
    bad: dict[str, object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_module, "RETRY_SECONDS", 0.01)
    path = tmp_path / "spool"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(LOOSE)
        add_row(database, toy_bundle, 1)
        add_row(database, toy_bundle, 2, **bad)
        # After the largest number SQLite takes no other.
        number = {"id": 3} if "id" in bad else {}
        add_row(database, toy_bundle, 3, **number)
    it = Spooled(path, toy_bundle, CAPACITY, rules_of(toy_bundle).check)
    it.link.up = True
    until(lambda: len(it.delivered) == 2 and it.sample("spool_entries") == 0, "the good ones")
    it.put(4)
    it.written(1)
    it.spool.close()
    assert [entry.index for entry in it.delivered[:2]] == [1, 3]
    assert it.dropped("damaged") >= 1 and it.sample("spool_errors_total") == 0
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "Traceback" not in caplog.text


def test_many_bad_rows_are_said_once(
    toy_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(LOOSE)
        for index in range(2000):
            # Of the right length, so that only decoding finds it.
            add_row(
                database,
                toy_bundle,
                index,
                **({} if index % 100 == 99 else {"codec": 0, "payload": b"\xff" * 40}),
            )
    it = Spooled(path, toy_bundle, CAPACITY, rules_of(toy_bundle).check)
    it.link.up = True
    until(lambda: len(it.delivered) == 20, "the good ones")
    until(lambda: it.sample("spool_entries") == 0, "no row")
    it.spool.close()
    assert it.dropped("damaged") == 1980
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_value_that_is_too_long_is_never_read(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row goes; the limit is SQLite's own, so no memory is taken for it."""
    monkeypatch.setattr(spool_store, "VALUE_BYTES", 1 << 20)
    path = tmp_path / "spool"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(LOOSE)
        add_row(database, toy_bundle, 1)
        for column in ("payload", "name", "early", "digest"):
            add_row(database, toy_bundle, 2, **{column: bytes(4 << 20)})
        for column in ("name", "codec", "image_index"):
            add_row(database, toy_bundle, 2, **{column: "x" * (4 << 20)})
        add_row(database, toy_bundle, 3)
    it = Spooled(path, toy_bundle, CAPACITY)
    it.link.up = True
    until(lambda: it.spool.wait_empty(0), "the good ones")
    it.spool.close()
    assert [entry.index for entry in it.delivered] == [1, 3]
    assert it.dropped("damaged") == 7 and it.sample("spool_errors_total") == 0


COUNT = (
    "import sqlite3, sys; "
    "print(sqlite3.connect(sys.argv[1]).execute('SELECT COUNT(*) FROM activations').fetchone()[0])"
)

STRANGERS = {
    "another program's": "CREATE TABLE photos (id INTEGER, pixels BLOB)",
    "a view of that name": "CREATE VIEW activations AS SELECT 1 AS id",
    "a trigger": f"{LOOSE}; CREATE TRIGGER t AFTER DELETE ON activations BEGIN DELETE FROM activations; END",
    "an index": f"{LOOSE}; CREATE UNIQUE INDEX i ON activations (codec)",
    "other columns": "CREATE TABLE activations (id INTEGER PRIMARY KEY, layer TEXT)",
    "computed columns": LOOSE.replace("codec,", "codec AS (abs(-1)),"),
    "no key": LOOSE.replace("id INTEGER PRIMARY KEY AUTOINCREMENT", "id"),
    "a virtual table": f"CREATE VIRTUAL TABLE activations USING fts5(id, {', '.join(COLUMNS)})",
}


@pytest.mark.parametrize("schema", STRANGERS.values(), ids=STRANGERS)
def test_a_database_that_is_no_spool_is_left_as_it_is(
    spooled: Callable[..., Any], tmp_path: Path, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool"
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(schema)
    before = path.read_bytes()
    with spooled() as it:
        it.link.up = True
        it.put(1)
        until(lambda: it.sample("spool_errors_total") >= 3, "some attempts")
        assert it.dropped("busy") == 1
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["spool"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "is not a spool of edge-device: " in caplog.text


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(
    spooled: Callable[..., Any], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "spool")
    with spooled() as it:
        until(lambda: it.sample("spool_errors_total") >= 2, "some attempts")
    assert "is not a regular file" in caplog.text


def test_an_error_that_nobody_thought_of_does_not_end_the_thread(
    spooled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failed = Store.write, threading.Event()

    def write(self: Store, entries: Sequence[Entry]) -> int:
        if not failed.is_set():
            failed.set()
            raise OverflowError("a bug")
        return real(self, entries)

    monkeypatch.setattr(Store, "write", write)
    with spooled() as it:
        it.put(1)
        failed.wait(60)
        until(lambda: it.put(2) or it.sample("spooled_total") >= 1, "a row")
        it.link.up = True
        until(lambda: it.delivered, "its answer")
    assert "OverflowError: a bug" in caplog.text


def test_two_spools_of_one_process_leave_the_lock_alone(
    spooled: Callable[..., Any], toy_bundle: Bundle, tmp_path: Path
) -> None:
    """The second one may not have the file, and its attempts do not let a third, of another process, in."""
    path = tmp_path / "spool"
    with spooled() as it:
        it.put(1)
        it.written(1)
        second = Spooled(path, toy_bundle, CAPACITY)
        until(lambda: second.sample("spool_errors_total") >= 3, "some attempts")
        try:
            shown = subprocess.run(
                [sys.executable, "-c", COUNT, str(path)], capture_output=True, text=True, check=False
            )
        finally:
            second.spool.close()
    assert "database is locked" in shown.stderr and not shown.stdout
