"""Every test image as a picture, answered by whole models; kept for the next call."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from offramp.bench.answers import whole_answers
from offramp.common import cpus
from offramp.common.bundle.load import Bundle
from offramp.common.errors import DataError
from offramp.common.inputs.formats import FORMATS, Format, sent
from offramp.common.part.answer import Replies
from offramp.common.part.engine import Engine
from offramp.common.wire.picture import encode_picture
from research.pareto.points import Sent, Sizes


def run_pictures(
    wholes: Sequence[Bundle],
    images: NDArray[np.uint8],
    formats: Sequence[Format] = FORMATS,
    tick: Callable[[], object] = lambda: None,
    *,
    kept: Path | None = None,
) -> dict[str, Sent]:
    """By format: bytes of each picture, and the answers of each whole model to what it decodes to.

    Args:
        wholes: the models.
        images: of the test part, uint8 [N, 3, H, W].
        formats: what they are sent as.
        tick: called after each format.
        kept: folder with what former calls found for the same model, images, format and Pillow: it is taken
            from there, and what is new is left there.

    Raises:
        DataError: a file in ``kept`` that is not what its name says.
    """
    engines: dict[int, Engine] = {}
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    found = {}
    for form in formats:
        answers: list[Replies] = []
        coded: tuple[Sizes, NDArray[np.uint8]] | None = None
        for number, whole in enumerate(wholes):
            decides = ("answers", PIL.__version__, digest, whole.digest.hex(), form)
            path = kept and kept / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}.npz"
            if path and path.exists():
                sizes, named = _read_answers(path, len(images), len(whole.manifest.classes))
                answers.append(named)
                continue
            coded = coded or sent(form, images)
            if number not in engines:
                engines[number] = Engine(whole, cpus.available())
            sizes = coded[0]
            answers.append(whole_answers(engines[number], coded[1]))
            if path:
                _keep_answers(path, sizes, answers[-1])
        found[form.name] = Sent(sizes, answers)
        tick()
    return found


def _read_answers(path: Path, count: int, classes: int) -> tuple[Sizes, Replies]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            sizes, best, probability = file["sizes"], file["best"], file["probability"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected kept answers, found {type(error).__name__}: remove it") from error
    types = (sizes.dtype, best.dtype, probability.dtype)
    shapes = {sizes.shape, best.shape, probability.shape}
    fits = types == (np.int64, np.int64, np.float32) and shapes == {(count,)}
    if not (fits and ((best >= 0) & (best < classes)).all()):
        raise DataError(f"{path}: expected kept answers for {count} images: remove it")
    return sizes, Replies(best, probability)


def _keep_answers(path: Path, sizes: Sizes, named: Replies) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, sizes=sizes, best=named.best, probability=named.probability)
    partial.replace(path)


def picture_payloads(
    images: NDArray[np.uint8],
    formats: Sequence[Format] = FORMATS,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Sizes]:
    """Of each lossy WebP format: what each image, uint8 [N, 3, H, W], takes as a device sends it, int64."""
    found = {}
    for form in formats:
        settings = dict(form.settings)
        if form.pillow == "WEBP" and not settings.get("lossless"):
            sizes = [len(encode_picture(image, settings["quality"])) for image in images]
            found[form.name] = np.array(sizes, np.int64)
        tick()
    return found
