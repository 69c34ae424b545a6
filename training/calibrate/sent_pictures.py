"""What sending unsure images once more, as pictures, would bring: see ``edge-device --picture-threshold``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.part.answer import Replies
from offramp.common.part.engine import softmax
from offramp.common.wire.picture import decode_picture, encode_picture
from offramp.training.calibrate.measure import Answers, run_graphs
from offramp.training.data.datasets import Labelled
from offramp.training.export import Graphs


@dataclass(frozen=True)
class SentAsPictures:
    """N images as pictures of one quality: bytes of each, int64 [N], and where the answer is right once the
    whole model has answered too, bool [N]."""

    quality: int
    payloads: NDArray[np.int64]
    right: NDArray[np.bool_]


def require_same_images(bundle: Bundle, whole: Bundle) -> None:
    """Raise ConfigError unless a server would have the second bundle answer pictures for the first."""
    if differing := bundle.manifest.reads_otherwise(whole.manifest):
        raise ConfigError(f"--pictures {whole.path}: its {differing} are not those of {bundle.path}")


def as_pictures(
    whole: Bundle, answers: Answers, images: NDArray[np.uint8], qualities: Sequence[int]
) -> Iterator[SentAsPictures]:
    """The images at each quality.

    Args:
        whole: whose head and tail, one after the other, answer pictures.
        answers: to the same images, of the bundle that is asked first.
        images: uint8 [N, 3, H, W].
        qualities: of libwebp, 0 … 100.
    """
    for quality in qualities:
        coded = [encode_picture(image, quality) for image in images]
        decoded = np.stack([decode_picture(payload, *images.shape[2:]) for payload in coded])
        seen = run_graphs(Graphs(whole.head, whole.tail), Labelled(decoded, answers.labels))
        payloads = np.array([len(payload) for payload in coded], np.int64)
        yield SentAsPictures(quality, payloads, answers.right_after(Replies.of(softmax(seen.final))))
