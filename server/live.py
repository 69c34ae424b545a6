"""What the server's live page shows beside its metrics (``common/page/``): its streams, and their devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from offramp.common.errors import printable
from offramp.common.page.site import Page
from offramp.server.service import InferenceService
from offramp.server.settings import ServerSettings
from offramp.server.stream import StreamSummary

SHOWN = 50
"""Streams that the page lists: those with the most frames."""


def page_of(service: InferenceService, settings: ServerSettings) -> Page:
    """The page of this server."""
    listen = settings.listen

    def state() -> dict[str, Any]:
        names = sorted({served.bundle.manifest.name for served in service.catalog.all()})
        more = {"upstream": list(settings.upstream)} if settings.upstream else {}
        return {"bundle": ", ".join(names), "listen": listen, **more, **fleet(service.streams())}

    return Page("cloud-server", state)


def fleet(streams: Sequence[StreamSummary]) -> dict[str, Any]:
    """Streams, and how many devices they are of, as far as addresses say."""
    hosts = {shown_peer(stream.peer).rpartition(":")[0] for stream in streams}
    most = sorted(streams, key=lambda stream: stream.taken, reverse=True)[:SHOWN]
    return {
        "hosts": len(hosts),
        "streams": [
            {
                "peer": printable(shown_peer(stream.peer)),
                "bundle": None if stream.bundle is None else printable(stream.bundle),
                "seconds": round(stream.seconds, 1),
                "taken": stream.taken,
                "unanswered": stream.unanswered,
                "strikes": stream.strikes,
            }
            for stream in most
        ],
    }


def shown_peer(peer: str) -> str:
    """HOST:PORT of gRPC's name for a peer, ``ipv4:…`` or ``ipv6:%5B…%5D:…``."""
    return unquote(peer.removeprefix("ipv4:").removeprefix("ipv6:"))
