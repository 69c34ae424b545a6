"""Many images through one device: their results in order, while up to a window of them are under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(images: Iterable[T], submit: Callable[[T], Future[R]], window: int) -> Iterator[R]:
    """What ``submit`` makes of each image. An image is taken only when a result is wanted."""
    pending: deque[Future[R]] = deque()
    for image in images:
        pending.append(submit(image))
        while pending and (len(pending) > window or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


async def in_order_async(
    images: Iterable[T] | AsyncIterable[T], submit: Callable[[T], Awaitable[Future[R]]], window: int
) -> AsyncIterator[R]:
    """As ``in_order``, over an iterable or an asynchronous one, such as a camera's."""
    pending: deque[Future[R]] = deque()
    async for image in _each(images):
        pending.append(await submit(image))
        while pending and (len(pending) > window or pending[0].done()):
            yield await asyncio.wrap_future(pending.popleft())
    while pending:
        yield await asyncio.wrap_future(pending.popleft())


async def _each(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    for image in images:
        yield image
