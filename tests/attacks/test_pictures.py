"""Each hostile picture is refused with its one line, and the good ones around it are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.common.errors import DataError
from offramp.common.inputs.spec import Preprocessing
from offramp.device.sources.source import Source
from tests.attacks.make_images import pictures
from tests.attacks.pictures import EXPECTED, FOLDER

PREPROCESSING = Preprocessing(color="RGB", height=8, width=8, resize="bilinear")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    return path


def test_every_file_has_an_expectation() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXPECTED) == set(pictures())


@pytest.mark.parametrize("name", EXPECTED)
def test_is_refused_with_one_line_and_the_next_good_one_is_read(name: str, good: Path) -> None:
    path = FOLDER / name

    before, hostile, after = Source([good, path, good], PREPROCESSING)

    assert isinstance(hostile.image, DataError)
    message = str(hostile.image)
    assert message.isprintable()
    assert re.fullmatch(EXPECTED[name], message.removeprefix(f"{path}: "))
    for item in (before, after):
        assert isinstance(item.image, np.ndarray)
        assert item.image[:, 0, 0].tolist() == [1, 2, 3]


def test_a_named_pipe_in_place_of_a_picture(good: Path) -> None:
    pipe = good.with_name("pipe.png")
    os.mkfifo(pipe)

    hostile, after = Source([pipe, good], PREPROCESSING)

    assert isinstance(hostile.image, DataError)
    assert str(hostile.image) == f"{pipe}: is a named pipe, expected a plain file"
    assert isinstance(after.image, np.ndarray)


def test_all_of_them_together_take_little_memory() -> None:
    code = (
        "import resource, sys\n"
        "from offramp.common.inputs.spec import Preprocessing\n"
        "from offramp.device.sources.source import Source\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = Preprocessing(color='RGB', height=8, width=8, resize='bilinear')\n"
        "list(Source([sys.argv[1]], size))\n"
        "before = peak()\n"
        "hostile = list(Source(sys.argv[2:], size))\n"
        "print(len(hostile), peak() - before)\n"
    )
    paths = [FOLDER / "001-text.png", *(FOLDER / name for name in EXPECTED)]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == len(EXPECTED) and kilobytes < 100_000
