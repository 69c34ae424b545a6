"""What one stream may do, as the settings say."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from offramp.server.settings import ServerSettings


@dataclass(frozen=True)
class StreamLimits:
    """Times are seconds; ``max_stream_age`` may be infinite. ``max_streams`` is of all streams together."""

    frames_in_flight: int
    max_streams: int
    strikes: int
    hello_timeout: float
    idle_timeout: float
    max_stream_age: float
    write_timeout: float
    grace: float

    @classmethod
    def of(cls, settings: ServerSettings) -> StreamLimits:
        """Those of a server's settings."""
        values = {limit.name: getattr(settings, limit.name) for limit in fields(cls)}
        if settings.max_stream_age is None:
            values["max_stream_age"] = math.inf
        return cls(**values)
