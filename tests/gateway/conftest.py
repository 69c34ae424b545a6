"""A gateway over a fake link, closed with its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.fakes import Desk


@pytest.fixture
def desk_of() -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(*arguments: object, **options: object) -> Desk:
        made.append(Desk(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
