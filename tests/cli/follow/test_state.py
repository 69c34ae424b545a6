"""What a follower remembers: bundles on disk, one on probation, and those that did not pass."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from offramp.cli.follow.state import (
    REFUSED,
    RETRY_FIRST,
    RETRY_MOST,
    STATE,
    STATE_BYTES,
    Held,
    State,
    Trial,
    read_state,
    write_state,
)
from offramp.common.errors import OutputError

NOW = 1_800_000_000.0


def held(number: int) -> Held:
    """A bundle."""
    return Held(artifact=f"sha256:{number:064x}", bundle=f"{number:064x}")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(tmp_path) == State()
    state = State(held=(held(1), held(2)), trial=Trial(held=held(3), starts=1))
    state = state.refuse(held(4).artifact, "ended with SIGKILL", again=False, now=NOW)
    state = state.model_copy(update={"trial": Trial(held=held(3), starts=1)})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert [each.name for each in tmp_path.iterdir()] == [STATE]


def test_the_bundle_that_passed_is_first_and_others_are_kept() -> None:
    state = State(trial=Trial(held=held(1)))
    for number in (1, 2, 3, 2):
        state = state.taken(held(number), keep=2)
    assert (state.held, state.current, state.trial) == ((held(2), held(3)), held(2), None)


def test_what_is_refused_for_good_is_not_tried_again() -> None:
    state = State(trial=Trial(held=held(1))).refuse(held(1).artifact, "x" * 999, again=False, now=NOW)
    assert state.trial is None
    assert not state.may_try(held(1).artifact, NOW + 1e9)
    assert state.may_try(held(2).artifact, NOW)


def test_what_may_do_better_later_is_tried_less_and_less_often() -> None:
    state, pauses = State(), []
    for _ in range(12):
        state = state.refuse(held(1).artifact, "no server has it", again=True, now=NOW)
        at = state.refused[0].retry_at
        assert at is not None
        pauses.append(at - NOW)
        assert not state.may_try(held(1).artifact, at - 1)
        assert state.may_try(held(1).artifact, at)
    assert pauses[:3] == [RETRY_FIRST, 2 * RETRY_FIRST, 4 * RETRY_FIRST]
    assert max(pauses) == RETRY_MOST
    # A clock that was years ahead when it was written.
    assert state.may_try(held(1).artifact, NOW - 1e8)


def test_only_so_many_refusals_are_remembered(tmp_path: Path) -> None:
    state = State()
    for number in range(2 * REFUSED):
        state = state.refuse(held(number).artifact, "é" * 300, again=False, now=NOW)
    write_state(tmp_path, state)
    assert len(read_state(tmp_path).refused) == REFUSED
    assert (tmp_path / STATE).stat().st_size < STATE_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 60_000,
        "x" * (STATE_BYTES + 1),
        '{"version": 2}',
        '{"version": 1, "more": 1}',
        json.dumps({"version": 1, "held": [{"artifact": "sha256:" + "0" * 64, "bundle": "../../etc"}]}),
        json.dumps({"version": 1, "held": [held(1).model_dump()] * 17}),
        json.dumps({"version": 1, "trial": {"held": held(1).model_dump(), "starts": -1}}),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    assert read_state(tmp_path) == State()
    assert [each.name for each in tmp_path.iterdir()] == [f"{STATE}.bad"]
    assert read_state(tmp_path) == State()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_not_a_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    if kind == "link":
        (tmp_path / STATE).symlink_to(secret)
    else:
        os.mkfifo(tmp_path / STATE)
    assert read_state(tmp_path) == State()
    write_state(tmp_path, State(held=(held(1),)))
    assert secret.read_text() == "mine"
    assert read_state(tmp_path).current == held(1)


def test_a_link_in_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / f"{STATE}.new").symlink_to(secret)
    write_state(tmp_path, State(held=(held(1),)))
    assert secret.read_text() == "mine"


def test_no_place_for_it_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=STATE):
        write_state(tmp_path / "gone", State())
