"""One way over one link: real processes, one image at a time."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import UnavailableError
from research.links.shaped_link import ShapedLink
from research.links.ways import Way

TIMEOUT = 120.0
"""Seconds that a device waits for the server: a slow link is to be measured, not given up."""
SETTLE_SECONDS = 0.2
"""How long the last acknowledgement may take, beyond a round trip."""
KEPT = 100
"""Images that exit early: how many of them are run."""


def run_way(
    bundle: Bundle,
    directory: Path,
    link: ShapedLink,
    server: str,
    way: Way,
    paths: Sequence[Path],
    most: int,
) -> dict[str, Any]:
    """One way over one link. Raises UnavailableError where an image is not answered as the graphs say."""
    sent, kept = sample(way.sent, most), sample(~way.sent, KEPT)
    with _device(link, directory, server, way) as ask:
        for index in (sent or kept)[:1]:  # connects, and allocates
            ask(paths[index])
        answers = {index: ask(paths[index]) for index in kept}
        time.sleep(link.shape.round_trip + SETTLE_SECONDS)
        before = link.interface_bytes()
        answers |= {index: ask(paths[index]) for index in sent}
        time.sleep(link.shape.round_trip + SETTLE_SECONDS)
        after = link.interface_bytes()
    differ = 0
    for index, answer in answers.items():
        if answer["source"] == "fallback":
            raise UnavailableError(
                f"{way.name} over {link.shape}: {paths[index]} was not answered by the server"
            )
        if (answer["source"] == "server") != bool(way.sent[index]):
            raise UnavailableError(f"{way.name}: {paths[index]} was answered by {answer['source']}")
        differ += answer["label"] != bundle.manifest.classes[way.best[index]]
    share = float(way.sent.mean())
    latencies = [[answers[index]["latency_seconds"] * 1e3 for index in which] for which in (sent, kept)]
    payloads = [answers[index]["payload_bytes"] for index in sent]
    carried = sum(after) - sum(before)
    return {
        "offload_share": share,
        "runs_sent": len(sent),
        "runs_kept": len(kept),
        "answers_that_differ": differ,
        "latency_ms_mean": weigh(share, *map(mean, latencies)),
        "latency_ms_sent": quartiles(latencies[0]),
        "latency_ms_kept": quartiles(latencies[1]),
        "payload_bytes_mean": weigh(share, mean(payloads), 0.0),
        "interface_bytes_mean": weigh(share, carried / len(sent) if sent else 0.0, 0.0),
    }


def sample(chosen: NDArray[np.bool_], most: int) -> list[int]:
    """At most so many of the chosen images, evenly spread."""
    found = np.flatnonzero(chosen)
    if len(found) <= most:
        return [int(index) for index in found]
    return [int(found[int(step)]) for step in np.linspace(0, len(found) - 1, most)]


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def weigh(share: float, sent: float, kept: float) -> float:
    """The mean over all images of which a share is sent."""
    return share * sent + (1 - share) * kept


def quartiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median and p95; None of nothing."""
    if not values:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


@contextmanager
def _device(link: ShapedLink, directory: Path, server: str, way: Way) -> Iterator[Any]:
    """A device's process; yields what asks it for one image and waits for the answer."""
    common = ("--bundle", directory, "--server", server)
    if way.flags[0].startswith("--"):
        with asking(link, "research.links.rival_device", *common, *way.flags) as ask:
            yield ask
    else:
        with asking_device(link, *common, "--threshold", *way.flags) as ask:
            yield ask


def asking_device(link: ShapedLink, *arguments: object) -> AbstractContextManager[Any]:
    """An ``edge-device`` on the near side of a link; see ``asking``."""
    flags = ("--insecure", "--json", "--timeout", TIMEOUT, "--log-level", "error", "-")
    return asking(link, "offramp.device.app", *arguments, *flags)


@contextmanager
def asking(link: ShapedLink, module: str, *arguments: object) -> Iterator[Any]:
    """A program that answers paths with JSON; yields what asks it for one image and waits for the answer."""
    with subprocess.Popen(
        [*link.device_prefix, sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(path: Path) -> dict[str, Any]:
            stdin.write(f"{path.absolute()}\n")
            if not select.select([stdout], [], [], TIMEOUT + 30)[0]:
                raise UnavailableError(f"{module} did not answer {path} within {TIMEOUT + 30:g} s")
            line = stdout.readline()
            if not line:
                raise UnavailableError(f"{module} ended before it answered {path}")
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise UnavailableError(f"{module}: {answer['error']}")
            return answer

        try:
            yield ask
            stdin.close()
            stdout.read()
        finally:
            process.terminate()
