"""A chain's answers: which part gives them, how they are folded, and thresholds that are chosen together."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp.common.errors import ConfigError
from offramp.common.part.answer import both_exits
from offramp.training.calibrate import chain_thresholds
from offramp.training.calibrate.chain import Chain, with_temperatures
from offramp.training.calibrate.chain_thresholds import Goal, choose_thresholds, with_better_answer
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.threshold import choose_threshold
from tests import toy_tensor


def chain(parts: int = 3, count: int = 60, classes: int = 4, **more: object) -> Chain:
    """Each part is more often right than the one before it, and surer."""
    rng = np.random.default_rng(parts)
    labels = rng.integers(0, classes, count)
    truth = np.eye(classes)[labels]
    logits = tuple(
        (rng.normal(0, 1, (count, classes)) + (number + 0.5) * truth).astype(np.float32)
        for number in range(parts)
    )
    symbols = tuple(rng.integers(100, 156, (count, 2, 2, 2)).astype(np.uint8) for _ in logits[1:])
    return Chain(symbols, logits, labels, (0.7,) * (parts - 1), **more)  # type: ignore[arg-type]


def payloads(own: Chain) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    rng = np.random.default_rng(9)
    return [rng.integers(5, 60 // (n + 1), len(own)) for n in range(len(own.symbols))]


def test_an_image_stops_at_the_first_part_that_is_sure() -> None:
    own = chain()
    stops = own.stops((0.6, 0.5))
    for at, stop in enumerate(stops):
        sure = own.confidence[0][at] > 0.6, own.confidence[1][at] > 0.5
        assert stop == (0 if sure[0] else 1 if sure[1] else 2)
    assert set(own.stops((1, 1))) == {2} and set(own.stops((0, 1))) == {0} and set(stops) == {0, 1, 2}
    assert set(own.stops((0, 0), first=1)) == {1}


def test_answers_are_folded_from_the_back_to_the_front() -> None:
    own = chain(sent_answer="both")
    first, second, third = own.probabilities
    between = both_exits(second, third.argmax(1), third.max(1))
    wanted = both_exits(first, between.argmax(1), between.max(1).astype(np.float32)).argmax(1)
    assert np.array_equal(own.right[2], wanted == own.labels)
    answered = both_exits(first, second.argmax(1), second.max(1)).argmax(1)
    assert np.array_equal(own.right[1], answered == own.labels)
    assert np.array_equal(own.right[0], own.own_right[0])


@pytest.mark.parametrize("answer", ["server", "both"])
def test_the_first_part_sees_the_rest_as_one_server(answer: str) -> None:
    own = chain(sent_answer=answer)
    seen = own.of_first((0.5, 0.6))
    for at in (0.0, 0.5, 1.0):
        assert seen.accuracy(at) == own.accuracy((at, 0.6))
    pair = chain(2, sent_answer=answer)
    assert pair.of_first((0.5,)).final is pair.logits[1]


def test_of_every_part_the_figures_add_up() -> None:
    own = chain()
    hops = payloads(own)
    found = own.figures((0.6, 0.5), hops, (0.5, 0.6, 0.7))
    assert sum(each.answered for each in found) == pytest.approx(1)
    assert sum(each.right for each in found) == pytest.approx(own.accuracy((0.6, 0.5)))
    assert found[1].sent_bytes_mean == np.where(own.stops((0.6, 0.5)) > 1, hops[1], 0).mean()
    assert found[2].payload_bytes_mean == 0 and found[0].payload_bytes_mean == hops[0].mean()


def by_hand(own: Chain, hops: list[np.ndarray[tuple[int], np.dtype[np.int64]]], at: tuple[float, ...]):  # type: ignore[no-untyped-def]
    stops = own.stops(at)
    return own.accuracy(at), [float(np.where(stops > n, each, 0).mean()) for n, each in enumerate(hops)]


@pytest.mark.parametrize("answer", ["server", "both"])
def test_thresholds_are_the_best_of_all_combinations(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = chain(sent_answer=answer)
    hops = payloads(own)
    # A grid of 21 levels for each of two exits, to go through by hand.
    monkeypatch.setattr(chain_thresholds, "CELLS", 21**2)
    monkeypatch.setattr(chain_thresholds, "_PASSES", 0)
    levels = [round(step / 20, 2) for step in range(21)]
    tried = [(at, *by_hand(own, hops, at)) for at in itertools.product(levels, repeat=2)]
    best = max(accuracy for _, accuracy, _ in tried)
    found = choose_thresholds(own, hops, Goal(drop=0.04, costs=(1.0, 0.25)))
    least = min(sent[0] + 0.25 * sent[1] for _, accuracy, sent in tried if accuracy >= best - 0.04 - 1e-9)
    accuracy, sent = by_hand(own, hops, found.thresholds)
    assert found.accuracy == pytest.approx(accuracy) and found.bytes_mean == pytest.approx(sent)
    assert accuracy >= best - 0.04 - 1e-9 and sent[0] + 0.25 * sent[1] == pytest.approx(least)
    found = choose_thresholds(own, hops, Goal(budget=(12.0, 3.0)))
    most = max(accuracy for _, accuracy, sent in tried if sent[0] <= 12 and sent[1] <= 3)
    assert found.bytes_mean[0] <= 12 and found.bytes_mean[1] <= 3 and found.accuracy == pytest.approx(most)
    with pytest.raises(ConfigError, match="budget: 1 numbers; expected one for each of 2 hops"):
        choose_thresholds(own, hops, Goal(budget=(12.0,)))


def test_of_many_exits_a_coarse_grid_is_made_finer_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    own = chain(5)
    hops = payloads(own)
    monkeypatch.setattr(chain_thresholds, "CELLS", 5**4)
    monkeypatch.setattr(chain_thresholds, "_PASSES", 0)
    coarse = choose_thresholds(own, hops, Goal(drop=0.0))
    monkeypatch.setattr(chain_thresholds, "_PASSES", 3)
    fine = choose_thresholds(own, hops, Goal(drop=0.0))
    assert fine.accuracy >= coarse.accuracy and sum(fine.bytes_mean) < sum(coarse.bytes_mean)
    accuracy, sent = by_hand(own, hops, fine.thresholds)
    assert (fine.accuracy, *fine.bytes_mean) == pytest.approx((accuracy, *sent))


@pytest.mark.parametrize("answer", ["server", "both"])
def test_of_a_pair_it_is_what_offramp_threshold_chooses(answer: str) -> None:
    own = chain(2, count=200, sent_answer=answer)
    hops = payloads(own)
    seen = own.of_first((0.5,))
    assert isinstance(seen, Answers)
    for goal in (Goal(drop=0.0), Goal(drop=0.05), Goal(budget=(7.5,)), Goal(budget=(0.0,))):
        budget = None if goal.budget is None else goal.budget[0]
        wanted = choose_threshold(seen, hops[0], drop=goal.drop, budget=budget)
        found = choose_thresholds(own, hops, goal)
        assert found.thresholds == (wanted.threshold,) and found.accuracy == wanted.accuracy
        assert found.bytes_mean == (wanted.bytes_mean,)


def test_exits_have_a_temperature_each_and_the_better_answer_is_taken() -> None:
    own = chain(count=400)
    sharp = replace(own, logits=(own.logits[0] * 5, *own.logits[1:]))
    first, second = with_temperatures(sharp).temperatures
    assert first == pytest.approx(5 * with_temperatures(own).temperatures[0], rel=0.1)
    assert second == pytest.approx(with_temperatures(own).temperatures[1])
    better = with_better_answer(own)
    reached = {
        answer: choose_thresholds(replace(own, sent_answer=answer), payloads(own), Goal(drop=0.0)).accuracy
        for answer in ("server", "both")
    }
    assert reached["server"] != reached["both"]
    assert better.sent_answer == max(reached, key=lambda answer: reached[answer])


@pytest.mark.parametrize("command", ["threshold", "step", "unknown"])
def test_commands_for_pairs_refuse_a_chain(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"offramp.training.calibrate.{command}_command")
    path = str(toy_tensor.write(tmp_path / "chain", parts=3).path)
    more = {"threshold": ["--drop", "1"], "step": ["--step", "2"], "unknown": ["--remove"]}[command]
    assert module.main([path, *more]) == 2
    assert f"chain: has 3 parts; offramp {command} expects 2" in capsys.readouterr().err
