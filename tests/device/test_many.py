"""Results of many images: in order, lazily, and no more under way than the window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

from offramp.device.many import in_order, in_order_async


class Submitted:
    """Images that were handed in, to be answered by the test."""

    def __init__(self) -> None:
        self.futures: dict[int, Future[str]] = {}

    def submit(self, image: int) -> Future[str]:
        self.futures[image] = Future()
        return self.futures[image]

    async def submit_async(self, image: int) -> Future[str]:
        return self.submit(image)

    def answer(self, image: int) -> None:
        self.futures[image].set_result(f"answer {image}")


def test_results_come_in_the_order_of_the_images() -> None:
    given = Submitted()

    def images() -> Iterator[int]:
        for image in range(6):
            yield image
            if image % 2:
                given.answer(image)
                given.answer(image - 1)

    assert list(in_order(images(), given.submit, 16)) == [f"answer {image}" for image in range(6)]


def test_no_more_are_taken_than_the_window_has_room_for() -> None:
    given = Submitted()
    results = in_order(iter(range(100)), lambda image: answered_later(given, image), 4)
    assert next(results) == "answer 0"
    assert len(given.futures) == 5
    assert next(results) == "answer 1"
    assert len(given.futures) == 6


def answered_later(given: Submitted, image: int) -> Future[str]:
    """The fifth and later images bring the answer to the one four before them."""
    future = given.submit(image)
    if image >= 4:
        given.answer(image - 4)
    return future


def test_what_is_answered_at_once_is_not_held_back() -> None:
    given = Submitted()

    def submit(image: int) -> Future[str]:
        future = given.submit(image)
        given.answer(image)
        return future

    results = in_order(iter(range(100)), submit, 16)
    for image in range(3):
        assert next(results) == f"answer {image}"
    assert len(given.futures) == 3


def test_an_event_loop_gets_the_same_from_both_kinds_of_iterables() -> None:
    async def camera() -> AsyncIterator[int]:
        for image in range(10):
            await asyncio.sleep(0)
            yield image

    async def work(asynchronous: bool) -> list[str]:
        given = Submitted()

        async def submit(image: int) -> Future[str]:
            future = await given.submit_async(image)
            if image % 3 == 0:
                for earlier in range(max(0, image - 2), image + 1):
                    given.answer(earlier)
            return future

        images = camera() if asynchronous else range(10)
        return [result async for result in in_order_async(images, submit, 4)]

    wanted = [f"answer {image}" for image in range(10)]
    assert asyncio.run(work(True)) == asyncio.run(work(False)) == wanted
