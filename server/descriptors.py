"""Open files: each connection takes one, so that the limits on connections have to fit the process's own.

Where they do not, accepting fails for everyone, the metrics page included, and nothing says so.
"""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import dataclass

from offramp.common.errors import ConfigError

log = logging.getLogger("offramp.cloud-server")

SPARE_CONNECTIONS = 256
"""Connections above the number of streams: for health checks, and for streams to be refused on."""
SPARE_SHARE = 5
"""One in so many connections is a spare one where there is room for fewer than all."""
RESERVE = 96
"""Open files beside connections: bundles and keys as they are read, logs, the metrics page, libraries'."""


@dataclass(frozen=True)
class Room:
    """What fits: open streams, connections in all, and the soft limit on open files that this needs."""

    streams: int
    connections: int
    files: int


def fit(streams: int, soft: int, hard: int, open_files: int = 0) -> Room:
    """The most of ``streams`` streams that fit the limits on open files; infinity is -1, as RLIM_INFINITY.

    open_files: those that the process has anyway. Raises ConfigError where not even one stream fits.
    """
    reserve = max(RESERVE, open_files + RESERVE // 2)
    wanted = streams + SPARE_CONNECTIONS + reserve
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Room(streams, streams + SPARE_CONNECTIONS, soft)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return Room(streams, streams + SPARE_CONNECTIONS, wanted)
    connections = hard - reserve
    spare = min(SPARE_CONNECTIONS, max(1, connections // SPARE_SHARE))
    if connections - spare < 1:
        raise ConfigError(
            f"the limit on open files is {hard}, expected {reserve + 2} at least (ulimit -n, LimitNOFILE)"
        )
    return Room(min(streams, connections - spare), connections, hard)


def make_room(streams: int) -> Room:
    """Raise the soft limit on open files for so many streams; if that is not enough, say for how many it is.

    Raises ConfigError where not even one stream fits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = fit(streams, soft, hard, _open_files())
    if room.files != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room.files, hard))
    if room.streams < streams:
        log.warning(
            "%d streams at most in place of --max-streams %d: the limit on open files is %d, those need %d "
            "(ulimit -n, LimitNOFILE)",
            room.streams,
            streams,
            hard,
            hard + streams + SPARE_CONNECTIONS - room.connections,
        )
    return room


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
