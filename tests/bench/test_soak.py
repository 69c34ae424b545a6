"""Memory over rounds of equal work: a warm-up ends, a leak does not, and only the second fails."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from offramp.bench.soak import GROWTH_BYTES, WINDOW, Reading, grows, is_flat, slope, soaking
from offramp.common.bundle.load import Bundle

MB = 1 << 20
ROUNDS = 60
"""At most, until nothing grows any more: some three times what it takes."""
WARM = 2400
"""Connects of the first round: gRPC remembers about as many."""


def noise(index: int, size: int) -> int:
    return int(size * math.sin(index * 2.4))


def test_a_warm_up_is_over_and_a_leak_is_not() -> None:
    warm = [100 * MB + int(8 * MB * (1 - math.exp(-i / 5))) + noise(i, 100_000) for i in range(60)]
    assert not is_flat(warm[: WINDOW - 1]) and not is_flat(warm[:WINDOW])
    assert is_flat(warm)
    step = [100 * MB] * 15 + [105 * MB] * 45
    assert not is_flat(step[:20]) and is_flat(step)
    # A leak shows at any time, also below the noise of a round, in steps, and behind a warm-up.
    for leak in (
        [100 * MB + 90_000 * i + noise(i, 100_000) for i in range(200)],
        [100 * MB + MB * (i // 8) for i in range(200)],
        [value + 90_000 * i for i, value in enumerate(warm)],
    ):
        assert not any(is_flat(leak[:count]) for count in range(1, len(leak) + 1))


def test_a_slope_is_that_of_the_second_half() -> None:
    growing = [Reading(60.0 * i, 100 * MB + (i < 10) * i * MB + 1000 * i, 10, 10) for i in range(40)]
    assert slope(growing) == pytest.approx(60_000, rel=0.01)
    assert slope(growing[:1]) == 0


def test_descriptors_and_threads_warm_up_as_memory_does_and_their_leaks_show_at_any_time() -> None:
    def readings(descriptors: list[int], threads: list[int]) -> list[Reading]:
        return [
            Reading(60.0 * i, 100 * MB, *held)
            for i, held in enumerate(zip(descriptors, threads, strict=True))
        ]

    steady, warm = [20] * 60, [20 + min(i, 15) for i in range(60)]
    leak = [20 + i for i in range(60)]
    assert not grows(readings(steady, steady))
    for held in ((warm, steady), (steady, warm)):
        series = readings(*held)
        assert grows(series[:16]) and not grows(series)
    for held in ((leak, steady), (steady, leak)):
        series = readings(*held)
        assert all(grows(series[:count]) for count in range(1, len(series) + 1))


def test_nothing_grows_while_devices_come_and_go(toy_bundle: Bundle, toy_images: Path) -> None:
    """The short form of ``offramp bench soak``: as many rounds as the warm-up and a window take."""
    with soaking(toy_bundle.path, toy_images) as soak:
        soak.round(connects=WARM, images=WARM)
        for _ in range(ROUNDS):
            soak.round(connects=100, images=400)
            if soak.is_flat():
                break
        result = soak.finish()
    print(result)
    assert result["accounted"] and result["by"] == {"server": result["images"]}
    for name, process in result["processes"].items():
        assert process["flat"], (name, process)


LEAKING = """
import sys
from offramp.server.app import main
from offramp.server.service import InferenceService

serve, kept = InferenceService.serve, []

async def leak(self, context):
    kept.append(bytearray(SIZE))
    await serve(self, context)

InferenceService.serve = leak
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_server_that_leaks_is_caught(toy_bundle: Bundle, toy_images: Path) -> None:
    """The same real programs, of which one keeps something of each stream."""
    leaking = LEAKING.replace("SIZE", "20_000")
    with soaking(toy_bundle.path, toy_images, server=("-c", leaking)) as soak:
        for _ in range(WINDOW + 2):
            soak.round(connects=20, images=20)
            assert not soak.is_flat()
        result = soak.finish()
    assert result["accounted"] and not result["processes"]["cloud-server"]["flat"]
    grown = result["processes"]["cloud-server"]
    assert (grown["mb_last"] - grown["mb_first"]) * 1e6 > GROWTH_BYTES
