"""Lists of paths, in files and on standard input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device.sources.source import Source
from tests import toy
from tests.device.sources.reading import (
    PREPROCESSING,
    errors,
    png_bytes,
    read,
    write_png,
)
from tests.processes import Processes, until


def test_a_list_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    for name, image in zip(["a.png", "b.png"], toy.images(2), strict=True):
        (tmp_path / name).write_bytes(png_bytes(image.transpose(1, 2, 0)))
    folder = tmp_path / "lists"
    folder.mkdir()
    text = folder / "list.txt"
    text.write_text(f"../b.png\n\n{tmp_path / 'a.png'}\r\n../missing.png\n../lists\n../nul\0.png\n")
    items = read(text)
    assert [isinstance(item.image, np.ndarray) for item in items] == [True, True, False, False, False]
    missing, directory, nul = errors(items)
    assert "missing.png: cannot be read: No such file" in missing
    assert "is a directory, expected a plain file" in directory
    assert "is not a path" in nul
    assert Source([text], PREPROCESSING).count() == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\n", "is not UTF-8 text but UTF-16"),
        (b"", "is empty"),
        (None, "is a named pipe, expected a plain file"),
    ],
    ids=["bytes", "empty", "pipe"],
)
def test_a_list_that_cannot_be_read_stops_the_run(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "list.txt"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_lines_of_a_list_end_with_newlines_only(tmp_path: Path) -> None:
    odd = [f"a{mark}b.png".encode() for mark in "\u2028\u2029\x0b\x0c\x85\x1c\r"] + [b"caf\xe9.png"]
    for name in odd:
        shutil.copy(write_png(tmp_path / "good"), os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfgood\r\n\r\n" + b"\n".join(odd) + b"\r\ngood")
    items = list(Source([path], PREPROCESSING))
    assert [os.fsencode(Path(item.name).name) for item in items] == [b"good", *odd, b"good"]
    assert all(isinstance(item.image, np.ndarray) for item in items)


def test_lines_of_standard_input_are_those_of_a_list(
    run: Processes, toy_images: Path, tmp_path: Path
) -> None:
    odd = [b"a\xe2\x80\xa8b.png", b"a\x0bb\x0c", b"caf\xe9.png"]
    text = b"\xef\xbb\xbf"
    for name in odd:
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(toy_images / "00.png", os.fsdecode(path))
        text += path + b"\r\n"
    (tmp_path / "lines").write_bytes(text)
    with (tmp_path / "lines").open() as lines:
        status, device = run.device("--threshold", 0, "--json", "-", stdin=lines)
    assert (status, len(device.answers)) == (0, 3), device.errors


@pytest.mark.parametrize("flags", [["-"], ["--watch", "-", "."]], ids=["alone", "with a folder"])
def test_a_closed_standard_input_is_one_error(toy_bundle: Bundle, flags: list[str]) -> None:
    command = 'exec "$0" -m offramp.device.app --bundle "$1" --threshold 0 "${@:2}" <&-'
    arguments = [sys.executable, str(toy_bundle.path), *flags]
    done = subprocess.run(
        ["bash", "-c", command, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "edge-device: -: standard input is closed, expected one path a line\n"


def test_a_standard_input_that_cannot_be_read_is_one_error(run: Processes, tmp_path: Path) -> None:
    handle = os.open(tmp_path / "lines", os.O_WRONLY | os.O_CREAT)
    status, device = run.device("--threshold", 0, "--json", "-", stdin=handle)
    os.close(handle)
    assert status == 5 and device.stderr == ["edge-device: -: cannot be read: Bad file descriptor"]


def test_paths_on_standard_input(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    device = run.start_device("--threshold", 0, "--json", "-", stdin=subprocess.PIPE)
    assert device.process.stdin is not None
    for number in range(3):
        device.process.stdin.write(f"{toy_images}/{number:02}.png\n")
        device.process.stdin.flush()
        until(lambda number=number: len(device.answers) == number + 1, "its answer")  # type: ignore[misc]
    device.process.stdin.write(f"\n{tmp_path}/none.png\n{toy_images}/05.png")
    device.process.stdin.close()
    assert device.wait() == 5
    assert device.summary["early_exit"] == 4 and device.summary["unreadable"] == 1


def test_a_signal_ends_the_wait_for_standard_input(run: Processes) -> None:
    device = run.start_device("--threshold", 0, "--json", "--metrics-port", 0, "-", stdin=subprocess.PIPE)
    device.wait_for("metrics on")
    device.send(signal.SIGINT)
    assert device.wait() == 130
    assert device.process.stdin is not None
    device.process.stdin.close()


def test_an_endless_line_is_refused(run: Processes) -> None:
    device = run.start_device("--threshold", 0, "--json", "-", stdin=subprocess.PIPE)
    assert device.process.stdin is not None
    try:
        device.process.stdin.write("x" * 200_000)
        device.process.stdin.close()
    except BrokenPipeError:
        pass
    assert device.wait() == 2
    assert "a line of over 65536 bytes" in device.errors
