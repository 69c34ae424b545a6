"""A follower with commands that fail in every way: what runs, and what is remembered of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from offramp.cli.follow import follower as follower_module
from offramp.cli.follow.channel import Channel, Folder
from offramp.cli.follow.child import Child
from offramp.cli.follow.follower import STARTS, Follower, Terms
from offramp.cli.follow.metrics import FollowMetrics
from offramp.cli.follow.notify import Relay
from offramp.cli.follow.state import State, Trial, read_state, write_state
from offramp.cli.registry.layout import Layout
from offramp.cli.registry.reference import Reference, parse_reference
from offramp.cli.registry.transfer import push
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.signature import SIGNATURE, UNDATED, TrustedKeys, generate_key, sign
from offramp.common.errors import ExitCode, OutputError
from tests import toy
from tests.processes import WAIT

RUN = "echo {bundle} >> $LOG; "


class Scene:
    """A channel in a directory, and a follower of it."""

    def __init__(self, folder: Path, bundles: list[Bundle]) -> None:
        self.bundles = bundles
        self.dir = folder / "dir"
        self.log = folder / "log"
        self.reference: Reference = parse_reference(f"oci-layout:{folder / 'layout'}:stable")
        self.metrics = FollowMetrics()
        self.terms = Terms((), None, every=0.05, probation=0.3, grace=5.0, keep=2)
        self.trusted: TrustedKeys | None = None

    def command(self, script: str) -> None:
        """What to run; it notes its bundle first."""
        whole = f"LOG={shlex.quote(str(self.log))}; {RUN}{script}"
        self.terms = replace(self.terms, command=("sh", "-c", whole))

    async def publish(self, number: int) -> None:
        """The tag names this bundle."""
        await push(self.bundles[number], Layout(self.reference))

    def follower(self, folder: Folder) -> Follower:
        """A new one, as after a restart."""
        arguments = argparse.Namespace(reference=self.reference, timeout=30.0)
        return Follower(self.terms, folder, Channel(arguments, folder, self.trusted), self.metrics, Relay({}))

    def runs(self) -> list[int]:
        """Which bundle each start was with."""
        names = {bundle.digest.hex()[:16]: number for number, bundle in enumerate(self.bundles)}
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [names[Path(line).name] for line in lines]

    def count(self, name: str, **labels: str) -> float:
        """A sample of the follower's metrics."""
        return self.metrics.registry.get_sample_value(f"offramp_follow_{name}", labels) or 0.0

    @property
    def state(self) -> State:
        return read_state(self.dir)

    def current(self) -> int:
        """The bundle that passed last."""
        held = self.state.current
        assert held is not None
        return [bundle.digest.hex() for bundle in self.bundles].index(held.bundle)

    def play(self, script: Callable[[Follower], Awaitable[None]]) -> int:
        """Run a follower while the script lasts; its exit status."""

        async def run(folder: Folder) -> int:
            follower = self.follower(folder)
            running = asyncio.ensure_future(follower.run())
            acting = asyncio.ensure_future(script(follower))
            async with asyncio.timeout(WAIT):
                await asyncio.wait({running, acting}, return_when=asyncio.FIRST_COMPLETED)
                if acting.done():
                    acting.result()
                    follower.stop()
                status = await running
                acting.cancel()
                return status

        with Folder(self.dir, self.trusted) as folder:
            return asyncio.run(run(folder))


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; ``play`` bounds it."""
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three that differ in their tails."""
    folder = tmp_path_factory.mktemp("bundles")
    return [toy.write(folder / str(number), seeds=(61, 47 + number)) for number in range(3)]


@pytest.fixture
def scene(tmp_path: Path, bundles: list[Bundle]) -> Scene:
    """With bundle 0 published."""
    found = Scene(tmp_path, bundles)
    asyncio.run(found.publish(0))
    return found


def test_a_bundle_that_does_well_passes_and_old_ones_go(scene: Scene) -> None:
    scene.command("exec sleep 60")

    def is_current(number: int) -> bool:
        return scene.current() == number

    async def script(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        for number in (1, 2):
            await scene.publish(number)
            await until(partial(is_current, number))

    assert scene.play(script) == -15
    assert scene.runs() == [0, 1, 2]
    assert scene.count("switches_total") == 3
    folders = {each.name for each in scene.dir.iterdir() if each.is_dir()}
    assert folders == {bundle.digest.hex()[:16] for bundle in scene.bundles[1:]}
    assert scene.state.trial is None


def test_one_that_crashes_is_given_up_for_good(scene: Scene) -> None:
    bad = scene.bundles[1].digest.hex()[:16]
    scene.command(f"case {{bundle}} in *{bad}) kill -9 $$;; esac; exec sleep 60")

    async def crash(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        await scene.publish(1)
        await until(lambda: scene.runs() == [0, 1, 0])

    scene.play(crash)
    (refusal,) = scene.state.refused
    assert (scene.current(), refusal.retry_at) == (0, None)
    assert "SIGKILL" in refusal.reason
    assert scene.count("rollbacks_total", cause="exit") == 1

    async def again(_: Follower) -> None:
        await until(lambda: scene.runs() == [0, 1, 0, 0])
        polled = scene.count("polls_total", result="unchanged")
        await until(lambda: scene.count("polls_total", result="unchanged") >= polled + 2)

    scene.play(again)
    assert scene.runs() == [0, 1, 0, 0]


def test_an_end_that_is_the_servers_fault_is_forgiven_later(scene: Scene) -> None:
    bad = scene.bundles[1].digest.hex()[:16]
    scene.command(f"case {{bundle}} in *{bad}) exit {int(ExitCode.PEER)};; esac; exec sleep 60")

    async def script(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        await scene.publish(1)
        await until(lambda: scene.runs() == [0, 1, 0])

    scene.play(script)
    (refusal,) = scene.state.refused
    assert refusal.retry_at is not None
    due = refusal.model_copy(update={"retry_at": 0.0})
    write_state(scene.dir, scene.state.model_copy(update={"refused": (due,)}))

    async def retried(_: Follower) -> None:
        await until(lambda: scene.runs() == [0, 1, 0, 0, 1, 0])

    scene.play(retried)
    assert scene.state.refused[0].times == 2


def test_one_that_takes_the_machine_down_is_tried_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.command("exec sleep 60")

    async def begin(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])

    scene.play(begin)

    class PowerCut(Exception):
        pass

    start = Child.start

    async def die(command: Sequence[str], environment: None) -> Child:
        if scene.state.trial is not None:
            raise PowerCut
        return await start(command)

    # What is on disk by then is all that there will be.
    asyncio.run(scene.publish(1))
    with monkeypatch.context() as patch:
        patch.setattr(Follower, "_stopped", lambda self: None)
        patch.setattr(Child, "start", die)
        for _ in range(STARTS):
            with pytest.raises(PowerCut):
                scene.play(lambda _: asyncio.sleep(WAIT))
    cut = scene.state.trial
    assert cut is not None and cut.starts == STARTS

    async def after(_: Follower) -> None:
        await until(lambda: scene.runs()[-1:] == [0] and scene.count("starts_total") >= 4)

    scene.play(after)
    assert scene.state.trial is None
    assert "cut off in its probation" in scene.state.refused[0].reason
    assert 1 not in scene.runs()


def test_an_end_in_good_order_says_nothing_against_a_bundle(scene: Scene) -> None:
    scene.command("exec sleep 60")
    scene.terms = replace(scene.terms, probation=WAIT)

    async def begin(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        await scene.publish(1)
        await until(lambda: scene.runs() == [0, 1])

    scene.play(begin)
    for count in range(STARTS + 1):
        trial = scene.state.trial
        assert trial is not None and trial.starts == 0

        async def goes_on(_: Follower, count: int = count) -> None:
            await until(lambda: scene.runs() == [0, 1] + [1] * (count + 1))

        scene.play(goes_on)


def test_a_page_that_never_shows_the_bundle_does_not_pass(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "SILENT_SECONDS", 0.3)
    scene.command("exec sleep 60")
    scene.terms = replace(scene.terms, metrics_url="http://127.0.0.1:1/metrics")

    async def script(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        await scene.publish(1)
        await until(lambda: scene.runs() == [0, 1, 0])

    scene.play(script)
    assert scene.count("rollbacks_total", cause="silent") == 1


def test_a_command_that_is_done_ends_the_follower_and_one_that_fails_is_started_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "RESTART_FIRST", 0.01)
    scene.command("[ $(wc -l < $LOG) -ge 3 ] || exit 1")
    assert scene.play(lambda _: asyncio.sleep(WAIT)) == 0
    assert scene.runs() == [0, 0, 0]
    scene.command("exit 2")
    assert scene.play(lambda _: asyncio.sleep(WAIT)) == ExitCode.CONFIG


def test_without_a_registry_what_is_on_disk_runs(scene: Scene) -> None:
    scene.command("exec sleep 60")

    async def first(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])

    scene.play(first)
    (scene.reference.directory or Path()).joinpath("index.json").unlink()

    async def second(_: Follower) -> None:
        await until(lambda: scene.runs() == [0, 0] and scene.count("polls_total", result="failed"))

    scene.play(second)


def test_a_bundle_that_was_damaged_on_disk_is_pulled_again(scene: Scene) -> None:
    scene.command("exec sleep 60")

    async def once(_: Follower, runs: int = 1) -> None:
        await until(lambda: len(scene.runs()) == runs)

    scene.play(once)
    place = scene.dir / scene.bundles[0].digest.hex()[:16]
    (place / "head.onnx").write_bytes(b"x")
    scene.play(lambda follower: once(follower, 2))
    assert load_bundle(place).digest == scene.bundles[0].digest


def test_nothing_is_tried_that_cannot_be_remembered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.command("exec sleep 60")

    def full(folder: Path, state: State) -> None:
        if state.trial is not None:
            raise OutputError("follow.json: No space left on device")
        write_state(folder, state)

    monkeypatch.setattr(follower_module, "write_state", full)

    async def script(_: Follower) -> None:
        await until(lambda: scene.runs() == [0])
        await scene.publish(1)
        await until(lambda: scene.count("polls_total", result="changed") >= 3)

    scene.play(script)
    assert scene.runs() == [0]


def test_a_trial_of_a_bundle_that_is_gone_is_dropped(scene: Scene) -> None:
    scene.command("exec sleep 60")

    async def begin(_: Follower) -> None:
        await until(lambda: scene.runs())

    scene.play(begin)
    held = scene.state.current
    assert held is not None
    lost = held.model_copy(update={"bundle": "f" * 64})
    write_state(scene.dir, scene.state.model_copy(update={"trial": Trial(held=lost, starts=1)}))

    async def goes_on(_: Follower) -> None:
        await until(lambda: scene.runs() == [0, 0])

    scene.play(goes_on)
    assert scene.state.trial is None


def test_a_registry_that_serves_an_old_signed_bundle_again_is_not_believed(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("cryptography")
    generate_key(tmp_path / "key", tmp_path / "pub")
    scene.trusted = TrustedKeys([tmp_path / "pub"])
    scene.bundles = [
        load_bundle(shutil.copytree(bundle.path, tmp_path / str(number)))
        for number, bundle in enumerate(scene.bundles[:2])
    ]

    async def serve(number: int, date: int) -> None:
        folder = scene.bundles[number].path
        line = sign((folder / MANIFEST).read_bytes(), tmp_path / "key", date)
        (folder / SIGNATURE).write_text(line)
        await scene.publish(number)

    async def is_taken(number: int) -> None:
        await until(lambda: scene.state.current is not None and scene.current() == number)

    async def is_refused() -> None:
        seen = scene.count("polls_total", result="older")
        # By every poll, as long as the tag names it.
        await until(lambda: scene.count("polls_total", result="older") >= seen + 2)

    async def script(_: Follower) -> None:
        await serve(0, 100)
        await is_taken(0)
        await serve(1, 200)
        await is_taken(1)
        for date in (100, UNDATED):
            await serve(0, date)
            await is_refused()
        assert scene.current() == 1
        # Its owner may go back.
        await serve(0, 300)
        await is_taken(0)
        await serve(0, 100)
        await is_refused()

    async def allowed(_: Follower) -> None:
        await serve(1, 200)
        await is_taken(1)

    with caplog.at_level(logging.WARNING, "offramp.follow"):
        scene.play(script)
    old, said = scene.bundles[0].digest.hex()[:16], [each.getMessage() for each in caplog.records]
    assert said[0] == (
        f"bundle {old} was signed at 1970-01-01T00:01:40Z, the current one at 1970-01-01T00:03:20Z: "
        "not taken up without --allow-older"
    )
    assert len(said) == 3
    held = scene.state.current
    assert held is not None and held.signed == 300
    scene.terms = replace(scene.terms, allow_older=True)
    scene.play(allowed)
