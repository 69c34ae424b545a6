"""Which parts of a bundle a server runs, and which it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError
from offramp.server.parts import part_of, parts_of
from tests import toy_chain, toy_tensor


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_chain.write(tmp_path_factory.mktemp("chain") / "toy", 4)


@pytest.mark.parametrize(
    ("wanted", "number"), [(None, 2), ("2", 2), ("3", 3), ("stage3", 3), ("4", 4), ("last", 4)]
)
def test_a_part_is_a_number_the_name_of_its_cut_or_the_last(
    four: Bundle, wanted: str | None, number: int
) -> None:
    assert part_of(four, wanted, upstream=True) == number


def test_of_a_pair_it_is_the_tail(toy_bundle: Bundle) -> None:
    assert [part_of(toy_bundle, wanted, upstream=False) for wanted in (None, "2", "last")] == [2, 2, 2]


@pytest.mark.parametrize("wanted", ["1", "5", "stage1", "", "tail"])
def test_a_part_that_is_not_there_is_named(four: Bundle, wanted: str) -> None:
    with pytest.raises(BundleError) as caught:
        part_of(four, wanted, upstream=True)
    assert str(caught.value) == (
        f"{four.path}: --part {wanted}: has no such part, expected one of stage2, stage3, 2, 3, 4, last"
    )


@pytest.mark.parametrize(
    ("wanted", "alone", "with_upstream"), [(None, [2, 3, 4], [2]), ("3", [3, 4], [3]), ("last", [4], [4])]
)
def test_without_an_upstream_all_parts_behind_run_here_too(
    four: Bundle, wanted: str | None, alone: list[int], with_upstream: list[int]
) -> None:
    for upstream, expected in ((False, alone), (True, with_upstream)):
        number = part_of(four, wanted, upstream=upstream)
        assert list(parts_of(four, number, upstream=upstream)) == expected


def test_a_part_between_needs_an_exit_where_it_answers_for_an_upstream(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"part 2 has no exit, expected one"):
        part_of(toy_tensor.write(tmp_path, parts=3), None, upstream=True)
    assert part_of(toy_tensor.write(tmp_path, parts=3), None, upstream=False) == 2
