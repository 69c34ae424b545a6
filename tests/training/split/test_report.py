"""The sentence that says whether to split or to send the picture; whole reports: tests/cli/test_split.py."""

from offramp.training.split.report import verdict
from offramp.training.split.rivals import Comparison, Point


def comparison(ours: float, picture: float, hybrid: float, accuracy: float = 0.9) -> Comparison:
    return Comparison(
        100,
        (Point("T_c = 0.5", ours, accuracy),),
        (Point("WebP 5", picture, 0.9), Point("JPEG 5", 10 * picture, 0.95)),
        (Point("early exit at T_c = 0.5, then WebP 5", hybrid, 0.92),),
    )


def test_the_verdict_says_what_is_saved() -> None:
    text = verdict(comparison(20, 1000, 300), "T_c = 0.5", 0.91)
    assert text == (
        "The split is 90.0% right (1.0 points below the unsplit model) for 20.0 B a photo on average; "
        "WebP or JPEG needs 50 times as many for as much (1,000 B, WebP 5); early exit + WebP needs 15 "
        "times as many for as much (300 B, early exit at T_c = 0.5, then WebP 5)."
    )


def test_the_verdict_says_so_when_a_picture_is_better() -> None:
    text = verdict(comparison(400, 1000, 300), "T_c = 0.5", 0.89)
    assert text.startswith(
        "Send the picture: early exit at T_c = 0.5, then WebP 5 is 92.0% right for 300.0 B"
    )
    assert "no worse than the unsplit model" in text


def test_the_verdict_says_so_when_nothing_has_to_be_sent() -> None:
    assert verdict(comparison(0, 1000, 0), "T_c = 0.5", 0.9).startswith("Nothing has to be sent: ")
