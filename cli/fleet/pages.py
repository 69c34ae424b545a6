"""Metrics pages are strangers' text: each is bounded, and what is not a page of ours is one error."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from offramp.common.errors import printable

PAGE_BYTES = 1 << 20
"""Ours have 20 kB."""
VALUE = 1e18
"""No figure of ours is larger, and none is below 0."""
NAMES = 16
"""Bundles of one page, and other names, that are shown."""
NAME = 40
"""Characters of a name that a page chose, at most."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample and its labels, sorted."""


class PageError(Exception):
    """What a target answered is not a metrics page of ours. The message is for the view."""


@dataclass(frozen=True)
class Page:
    """One reading of a metrics page. Values are 0 … ``VALUE``."""

    at: float
    """``time.monotonic()``."""
    values: dict[Key, float]

    def get(self, name: str, **labels: str) -> float:
        """A sample; 0 where the page has none."""
        return self.values.get((name, tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label of this metric, fit to be printed."""
        found = {
            printable(dict(pairs).get(label, ""), NAME) for metric, pairs in self.values if metric == name
        }
        return sorted(found)[:NAMES]


async def fetch(client: httpx.AsyncClient, url: str) -> str:
    """A page's text. Raises PageError, httpx.HTTPError."""
    async with client.stream("GET", url) as response:
        if response.status_code != 200:
            raise PageError(f"answers with status {response.status_code}, expected 200")
        data = bytearray()
        # As it was sent: what is compressed would have to be bounded again.
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > PAGE_BYTES:
                raise PageError(f"sends more than {PAGE_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PageError("is not a metrics page (not UTF-8)") from None


def read_page(text: str, at: float) -> Page:
    """The samples of a page that are ours. Raises PageError."""
    values: dict[Key, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("offramp_") and 0 <= sample.value <= VALUE:
                    values[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    except Exception as error:  # the parser answers nonsense with whatever comes
        raise PageError(f"is not a metrics page ({type(error).__name__})") from None
    page = Page(at, values)
    if not is_device(page) and not is_server(page):
        raise PageError("is not a metrics page of Offramp")
    return page


def is_device(page: Page) -> bool:
    """Whether an ``edge-device`` wrote it."""
    return any(name == "offramp_device_images_total" for name, _ in page.values)


def is_server(page: Page) -> bool:
    """Whether a ``cloud-server`` wrote it."""
    return any(name == "offramp_server_frames_total" for name, _ in page.values)
