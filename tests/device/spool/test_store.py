"""The spool's file alone: what it holds, what must go, and who may use it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.codec.activation import CodecId
from offramp.device.spool.store import NAME_BYTES, ROW_BYTES, Entry, Rules, Store, fits, is_damage

SIZE = ROW_BYTES + 10 + len("0.png")
CAPACITY = 3 * SIZE


def entry(index: int, payload: int = 10) -> Entry:
    return Entry(CodecId.RAW, bytes([index]) * payload, index, f"{index}.png")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "spool", CAPACITY, Rules(bytes(32), 1 << 10, 12, lambda _: None))
    assert made.open() == 0
    yield made
    made.close()


def indices(store: Store, *without: int) -> list[int]:
    return [each.index for _, each in store.oldest(without, 100)]


def test_rows_and_bytes_are_what_is_held(store: Store) -> None:
    assert entry(0).size == SIZE
    assert store.write([entry(0), entry(1)]) == 0
    assert (store.rows, store.bytes) == (2, 2 * SIZE)
    number = store.find(entry(1))
    assert number is not None and store.find(entry(2)) is None
    assert indices(store, number) == [0]
    for _ in range(2):
        store.delete(number)
        assert (store.rows, store.bytes) == (1, SIZE)


def test_the_oldest_must_go_for_new_ones_also_of_those(store: Store) -> None:
    store.write([entry(0), entry(1)])
    assert store.write([entry(2), entry(3)]) == 1 and indices(store) == [1, 2, 3]
    assert store.write([entry(number) for number in range(4, 9)]) == 5 and indices(store) == [6, 7, 8]
    assert (store.rows, store.bytes) == (3, CAPACITY)


def test_the_file_stays_when_it_is_closed(store: Store) -> None:
    store.write([entry(0), entry(1)])
    store.close()
    assert not store.is_open and store.open() == 0
    assert indices(store) == [0, 1] and store.bytes == 2 * SIZE


def test_a_file_that_is_set_aside_or_started_over_leaves_an_empty_one(store: Store, tmp_path: Path) -> None:
    for step in (store.set_aside, store.start_over):
        store.write([entry(0)])
        step()
        assert not store.is_open and store.rows == store.bytes == 0
        store.open()
        assert indices(store) == []
    assert (tmp_path / "spool.damaged").is_file()


def test_it_is_for_the_thread_that_opened_it(store: Store) -> None:
    errors: list[Exception] = []

    def use() -> None:
        try:
            store.find(entry(0))
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert len(errors) == 1 and not is_damage(errors[0])


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (entry(0, CAPACITY - ROW_BYTES - len("0.png")), True),
        (entry(0, CAPACITY - ROW_BYTES - len("0.png") + 1), False),
        (Entry(CodecId.RAW, b"", 1 << 63, ""), False),
        (Entry(CodecId.RAW, b"", -1, ""), False),
        (Entry(CodecId.RAW, b"", 0, "x" * (NAME_BYTES + 1)), False),
    ],
)
def test_what_fits_can_be_a_row(candidate: Entry, expected: bool) -> None:
    assert fits(candidate, CAPACITY) is expected
