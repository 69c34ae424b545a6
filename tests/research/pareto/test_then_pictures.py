"""Pictures after activations."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from offramp.common.part.answer import Replies
from research.pareto import points, then_pictures
from tests.research.pareto.coded import coded

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_a_picture_follows_where_the_servers_answer_is_unsure_too() -> None:
    split = coded([0.605, 0.9, 0.695, 0.8], [1, 1, 0, 0], [0, 0, 1, 0], [10, 20, 30, 40])
    # What the server gives the two classes: it is least sure of the first image.
    sure = np.log(np.array([[0.45, 0.2, 0.9, 0.35], [0.55, 0.8, 0.1, 0.65]], np.float32).T)
    split = replace(split, answers=replace(split.answers, final=sure))
    whole = Replies(np.array([0, 0, 0, 1]), np.ones(4, np.float32))
    found, payloads = (
        {"WebP 50": points.Sent(np.full(4, 100), [whole])},
        {"WebP 50": np.array([70, 71, 72, 73])},
    )
    after = then_pictures.points_then_pictures({"ours": split}, found, payloads)
    sent = {name: (bytes_.tolist(), right.tolist()) for name, bytes_, right in zip(
        after.names, after.sent, after.right, strict=True
    )}  # fmt: skip
    # The first image's early exit and server are wrong, its picture is right.
    assert sent["ours, WebP 50, T_c = 0.61, then 0.6"] == ([16 + 76, 0, 0, 0], [1, 1, 0, 0])
    assert sent["ours, WebP 50, T_c = 0.7, then 0.6"] == ([16 + 76, 0, 36, 0], [1, 1, 1, 0])
    # One that sends more and is right no more often is no point.
    assert list(sent) == sorted(sent) and len(sent) == 2
    means = after.right.mean(axis=1)
    assert (np.diff(means) > 0).all() and (np.diff(after.sent.mean(axis=1)) > 0).all()
