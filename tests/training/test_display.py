"""Progress as lines: how far, what is left, and that it still works."""

import io

from offramp.training.display import Screen


class Now:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_within_a_stage_a_line_every_ten_seconds_says_what_is_left() -> None:
    stream, now = io.StringIO(), Now()
    screen = Screen(stream, clock=now)
    with screen.bar("base 3") as bar:
        for step in range(1, 101):
            bar(step, 100, f"loss {step}")
            now.seconds += 1
    lines = stream.getvalue().splitlines()
    assert lines[0] == "base 3: 11 of 100, loss 11; 89 s left"
    assert len(lines) == 9


def test_a_second_count_in_the_same_stage_has_a_speed_of_its_own() -> None:
    stream, now = io.StringIO(), Now()
    screen = Screen(stream, clock=now)
    with screen.bar("classifier") as bar:
        for photos in range(256, 1024, 256):
            bar(photos, 1024, "features")
            now.seconds += 1
        for step in range(1, 101):
            bar(step, 100)
            now.seconds += 1
    assert stream.getvalue().splitlines()[0] == "classifier: 11 of 100; 89 s left"


def test_where_nothing_moves_it_says_that_it_works() -> None:
    stream, now = io.StringIO(), Now()
    screen = Screen(stream, clock=now)
    screen.say("quantizing")
    for _ in range(200):
        now.seconds += 1
        screen.look()
    assert stream.getvalue().splitlines() == [
        "quantizing",
        "still working, 10 s after the line above",
        "still working, 30 s after the line above",
        "still working, 70 s after the line above",
        "still working, 130 s after the line above",
        "still working, 190 s after the line above",
    ]
    # A bar that moves is sign enough, though it says nothing yet.
    with screen.bar("code") as bar:
        for step in range(8):
            now.seconds += 1
            bar(step, 1000)
            screen.look()
    assert len(stream.getvalue().splitlines()) == 6


def test_it_watches_while_it_is_entered() -> None:
    stream = io.StringIO()
    with Screen(stream, seconds=0.0) as screen:
        assert screen._watch is not None and screen._watch.is_alive()
        screen._ended.wait(1.5)
    assert not screen._watch.is_alive()
    assert "still working" in stream.getvalue()


def test_on_a_terminal_it_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Screen(stream).bar("code") as bar:
        bar(1, 3, "loss 2")
        bar(3, 3)
        bar(1, 7)
    assert "code:" in stream.getvalue() and "0/3" in stream.getvalue() and "0/7" in stream.getvalue()
