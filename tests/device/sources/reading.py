"""What the tests of the sources share: small pictures, and readers of sources."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.common.errors import DataError
from offramp.common.inputs.spec import Preprocessing
from offramp.device.sources.item import Item
from offramp.device.sources.source import Source
from tests import toy
from tests.processes import WAIT

PREPROCESSING = Preprocessing(color="RGB", height=toy.SIDE, width=toy.SIDE, resize="bilinear")


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_png(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "PNG")
    return path


def read(*paths: Path) -> list[Item]:
    return list(Source(list(paths), PREPROCESSING))


def errors(items: list[Item]) -> list[str]:
    return [str(item.image) for item in items if isinstance(item.image, DataError)]


def one_error(path: Path) -> str:
    """Read a bad file with a good one behind it: the one error, after the good one was still read."""
    good = path.parent / "good.png"
    good.write_bytes(png_bytes(np.full((8, 8, 3), 7, np.uint8)))
    *bad, last = read(path, good)
    assert isinstance(last.image, np.ndarray) and (last.image == 7).all()
    (error,) = errors(bad)
    assert error.startswith(str(path)) and "\n" not in error
    return error


def names(items: list[Item], good: bool = True) -> list[str]:
    return [Path(item.name).name for item in items if isinstance(item.image, np.ndarray) == good]


def fault_of(items: list[Item]) -> str:
    (fault,) = (str(item.image) for item in items if isinstance(item.image, DataError))
    return fault


class Reader:
    """Reads a source on a thread of its own until ``stop``."""

    def __init__(self, *paths: Path | str, watch: bool = False) -> None:
        self.items: list[Item] = []
        self._stop = threading.Event()
        made = Source(list(paths), PREPROCESSING, watch, lambda _: self._stop.wait(0.005))
        # One by one, so that others see them come.
        self._thread = threading.Thread(target=self._read, args=(made,), daemon=True)
        self._thread.start()

    def _read(self, made: Source) -> None:
        for item in made:
            self.items.append(item)

    @property
    def names(self) -> list[str]:
        return [Path(item.name).name for item in self.items]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def watched(*paths: Path) -> tuple[list[Item], Callable[[], None]]:
    """The items of watched folders as they come, and what stops it."""
    reader = Reader(*paths, watch=True)
    return reader.items, reader.stop


def failing_scan(monkeypatch: pytest.MonkeyPatch, bad: Path, number: int) -> list[bool]:
    """From now on listing ``bad`` fails, while the returned list is not empty."""
    on = [True]
    real = os.scandir

    def scan(path: Any = ".") -> Any:
        if on and Path(path) == bad:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    return on
