"""Two hops of a chain in trouble at once, in every combination: ``runs/faults-chain.sh`` prints the table.

A device under load, a gateway and a server, each of the two behind a network of its own. A fault of each is
begun, both last until the device has fallen back; then the gateway is mended, and answers alone, then the
server. After that the chain has to work by itself. ``--server-first`` mends them the other way round.
At the end of each combination the load rests, and the pages of all three are compared.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests import toy, toy_chain
from tests.faults.load import FAST, Account, Load, load
from tests.faults.proxy import bad_network
from tests.processes import Processes, processes, until
from tests.server.variants import variant

FAULTS = ("stop", "hole", "reload", "kill", "restart")
"""SIGSTOP; a network that swallows; the bundle taken out of service; SIGKILL; SIGTERM. The cheapest first."""
LOSING = ("kill", "restart")
"""What makes a page begin at 0 again."""
LEAST = 15
"""Images that a fault lasts, and answers after it, at least."""
TIMEOUT = 0.6
PATIENCE = 5.0
"""Seconds that pages have to agree in."""


class Hop:
    """A gateway or a server, and the network in front of it."""

    def __init__(self, run: Processes, stack: ExitStack, folder: Path, *flags: object) -> None:
        self._run = run
        self._flags = (*FAST, "--reload-interval", 3600, *flags)
        self._models, self._aside = folder / "models", folder / "aside"
        self._models.mkdir(parents=True)
        shutil.copytree(run.bundle, self._models / "chain")
        # Something has to be left, or nothing is retired.
        variant(toy_chain.write(folder / "other"), self._models / "other", "other")
        self.server = run.server(*self._flags, bundle=self._models)
        peer, self._network = stack.enter_context(bad_network(self.server.port))
        self.address = f"127.0.0.1:{peer.port}"

    def begin(self, fault: str) -> None:
        """From now on it is in trouble."""
        if fault == "stop":
            self.server.send(signal.SIGSTOP)
        elif fault == "hole":
            self._network.hole.set()
        elif fault == "reload":
            (self._models / "chain").rename(self._aside)
            self._reload("retires")
        elif fault == "kill":
            self.server.send(signal.SIGKILL)
            self.server.wait()
        else:
            assert self.server.drain() == 0

    def end(self, fault: str) -> None:
        """It is as before; whoever asks it has to find out."""
        if fault == "stop":
            self.server.send(signal.SIGCONT)
        elif fault == "hole":
            self._network.hole.clear()
        elif fault == "reload":
            self._aside.rename(self._models / "chain")
            self._reload("serves")
        else:
            address = self.server.address
            self.server = self._run.server(*self._flags, bundle=self._models, listen=address)

    def _reload(self, word: str) -> None:
        def said() -> int:
            return self.server.errors.count(f"{word} toy-chain-3 ")

        before = said()
        self.server.send(signal.SIGHUP)
        until(lambda: said() > before, f"that it {word} the bundle")

    def page(self) -> Counter[str]:
        """What it has counted."""
        return Counter({key: int(value) for key, value in self.server.metrics().items() if _is_count(key)})


def _is_count(key: str) -> bool:
    return "_total" in key and "seconds" not in key


@dataclass(frozen=True)
class Pages:
    """What the three have counted at one moment."""

    device: Counter[str]
    gateway: Counter[str]
    server: Counter[str]


@dataclass(frozen=True)
class Row:
    """What became of the images of one combination."""

    gateway: str
    server: str
    seconds: float
    images: int
    answers: int
    parts: dict[int, int]
    cut_short: int
    """Of part 2's: those that part 3 did not answer."""
    fallbacks: int
    disagreements: list[str]

    def __str__(self) -> str:
        pages = "; ".join(self.disagreements) or "agree"
        by_part = "".join(f"{self.parts[part]:>8}" for part in (1, 2, 3))
        return (
            f"{self.gateway:<9}{self.server:<9}{self.images:>8}{self.answers:>9}{by_part}"
            f"{self.cut_short:>8}{self.fallbacks:>11}{self.seconds:>7.1f}  {pages}"
        )


HEADER = "gateway  server     images  answers  part 1  part 2  part 3   short  fallbacks      s  pages"


class Chain:
    """The three programs, running."""

    def __init__(self, device: Load, gateway: Hop, server: Hop) -> None:
        self.device = device
        self.gateway = gateway
        self.server = server

    def works(self) -> None:
        """Wait until all parts answer again."""
        names = [f"answers_total{{cut_short=false,part={part}}}" for part in (2, 3)]
        most = [self.device.value(name) + LEAST for name in names]

        def answer() -> bool:
            return all(self.device.value(name) >= least for name, least in zip(names, most, strict=True))

        until(answer, "answers of parts 2 and 3")

    def _pages(self) -> Pages:
        page = self.device.metrics()
        device = Counter({key: int(value) for key, value in page.items() if _is_count(key)})
        return Pages(device, self.gateway.page(), self.server.page())

    def pair(self, gateway: str, server: str, *, server_first: bool = False) -> Row:
        """Both in trouble at once, and what became of the images. The load rests before and after."""
        before, sent, start = self._pages(), self.device.sent, time.monotonic()
        self.device.paused.clear()
        self.gateway.begin(gateway)
        self.server.begin(server)
        self.device.more("fallback", LEAST)
        if server_first:
            self.server.end(server)
            # Nothing comes through to it.
            self.device.more("fallback", LEAST)
            self.gateway.end(gateway)
        else:
            self.gateway.end(gateway)
            # The other hop still fails: the gateway's exit answers.
            least = self.device.value(SHORT) + LEAST // 3
            until(lambda: self.device.value(SHORT) >= least, "answers of the gateway alone")
            self.server.end(server)
        self.works()
        self.device.rest()
        patience = time.monotonic() + PATIENCE
        # Streams that broke may still be ending.
        while disagreements := self._disagreements(before, gateway, server):
            if time.monotonic() > patience:
                break
            time.sleep(0.05)
        device = self._pages().device - before.device
        return Row(
            gateway,
            server,
            time.monotonic() - start,
            self.device.sent - sent,
            sum(value for key, value in device.items() if key.startswith("offramp_device_images_total")),
            {part: sum(device[ANSWERS % (cut, part)] for cut in ("true", "false")) for part in (1, 2, 3)},
            device[ANSWERS % ("true", 2)],
            device[FALLBACKS],
            disagreements,
        )

    def _disagreements(self, before: Pages, gateway: str, server: str) -> list[str]:
        """What the pages say that cannot be, of the time since; they are at rest."""
        now = self._pages()
        device = now.device - before.device
        middle = now.gateway if gateway in LOSING else now.gateway - before.gateway
        last = now.server if server in LOSING else now.server - before.server
        found: list[str] = []

        def check(what: str, left: int, right: int, *, at_most: bool = False) -> None:
            if left > right or (left < right and not at_most):
                found.append(f"{what}: {left} and {right}")

        asked = device["offramp_device_images_total{source=server}"]
        unanswered = _sum(device, "offramp_device_frames_unanswered_total")
        check("fallbacks and frames without an answer", device[FALLBACKS], unanswered)
        check("answers by part and by server", sum(device[ANSWERS % each] for each in BEHIND), asked)
        read = middle["offramp_server_frames_total{result=answered}"]
        by = {
            each: middle[f"offramp_server_answers_total{{by={each}}}"]
            for each in ("exit", "upstream", "fallback")
        }
        check("the gateway's answers and who gave them", read, sum(by.values()))
        if gateway not in LOSING:
            # What it answered too late, or to a stream that had gone, is not an answer at the device.
            check("the device's answers and the gateway's", asked, read, at_most=True)
            late = unanswered + device["offramp_device_frames_resent_total"]
            check("the gateway's answers beyond the device's", read - asked, late, at_most=True)
        forwarded = by["upstream"]
        if server not in LOSING and gateway not in LOSING:
            theirs = last["offramp_server_frames_total{result=answered}"]
            check("the gateway's from upstream and the server's", forwarded, theirs, at_most=True)
            late = _sum(middle, "offramp_server_upstream_frames_unanswered_total")
            late += middle["offramp_server_upstream_frames_resent_total"]
            late += middle["offramp_server_frames_total{result=abandoned}"]
            check("the server's beyond the gateway's", theirs - forwarded, late, at_most=True)
        return found


FALLBACKS = "offramp_device_images_total{source=fallback}"
SHORT = "answers_total{cut_short=true,part=2}"
ANSWERS = "offramp_device_answers_total{cut_short=%s,part=%d}"
BEHIND = (("true", 2), ("false", 2), ("false", 3))


def _sum(page: Counter[str], name: str) -> int:
    return sum(value for key, value in page.items() if key.startswith(name + "{"))


@contextmanager
def three_hops(run: Processes, images: Path) -> Iterator[Chain]:
    """All three, warmed up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chain-")))
        server = Hop(run, stack, folder / "server")
        gateway = Hop(
            run, stack, folder / "gateway", "--upstream", server.address, "--upstream-timeout", TIMEOUT / 2
        )
        flags = ("--server", gateway.address, "--timeout", TIMEOUT)
        device = stack.enter_context(load(run, images, *flags, plain=True))
        device.warmed_up()
        device.rest()
        yield Chain(device, gateway, server)


def check_end(account: Account) -> None:
    """What holds at the end, beside what ``Load.finish`` checks."""
    assert all(record["part"] == 1 for record in account.fallbacks)
    assert "Traceback" not in account.errors


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where pages disagree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        action="append",
        metavar="GATEWAY+SERVER",
        help="this combination, as stop+kill; may be repeated",
    )
    parser.add_argument("--server-first", action="store_true", help="mend the server first, then the gateway")
    arguments = parser.parse_args(argv)
    pairs = list(itertools.product(FAULTS, repeat=2))
    if arguments.only is not None:
        pairs = [pair for pair in pairs if "+".join(pair) in arguments.only]
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for index, image in enumerate(toy.images(40, seed=2)):
            Image.fromarray(image.transpose(1, 2, 0)).save(images / f"{index:02}.png")
        bundle = toy_chain.write(Path(folder) / "toy")
        print(HEADER, flush=True)
        with processes(bundle.path) as run, three_hops(run, images) as three:
            for gateway, server in pairs:
                rows.append(three.pair(gateway, server, server_first=arguments.server_first))
                print(rows[-1], flush=True)
            account = three.device.finish()
    check_end(account)
    wrong = sum(bool(row.disagreements) for row in rows)
    print(
        f"{account.sent} images, {len(account.records)} answers; pages disagree after {wrong} of {len(rows)}"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
