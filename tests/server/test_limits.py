"""The limits of one stream, from the server's settings."""

from __future__ import annotations

import math
from dataclasses import asdict

from offramp.server.limits import StreamLimits
from offramp.server.settings import ServerSettings

VALUES = {"bundle": ["b"], "frames_in_flight": 7, "strikes": 3, "grace": 2, "max_stream_age": 600}


def test_they_are_the_settings() -> None:
    settings = ServerSettings.model_validate(VALUES)
    found = asdict(StreamLimits.of(settings))
    assert found == {name: getattr(settings, name) for name in found}
    assert (found["frames_in_flight"], found["strikes"], found["max_stream_age"]) == (7, 3, 600)


def test_no_greatest_age_is_an_infinite_one() -> None:
    settings = ServerSettings.model_validate(VALUES | {"max_stream_age": None})
    assert StreamLimits.of(settings).max_stream_age == math.inf
