"""Fixtures that every test may use: the toy bundle, copies of it to damage, and a folder of images."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.part.engine import Engine
from tests import toy
from tests.certificates import Authority, Pair
from tests.toy import BundleFolder

# A deadline is a wall clock, and this machine may be busy.
hypothesis.settings.register_profile("offramp", deadline=None, print_blob=True)
hypothesis.settings.load_profile("offramp")

# Hundreds of programs are started: each would compile our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each core has a worker: a second thread of torch, here or in a program, would wait for the first one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores SIGINT, and so would every process here that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


PROCESS = re.compile(r"^\s*(?:import subprocess|from tests\.(?:processes|kill) import)", re.MULTILINE)
TORCH = re.compile(r"^\s*(?:import torch|from torch|from offramp\.training)", re.MULTILINE)
ROOT = re.compile(r"\bgeteuid\b|\bnamespaces\b")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what their files use, so that no mark is forgotten: ``make check`` leaves these out."""
    sources: dict[Path, str] = {}
    for item in items:
        source = sources.setdefault(item.path, item.path.read_text())
        if PROCESS.search(source) or "run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.process)
        if TORCH.search(source):
            item.add_marker(pytest.mark.torch)
        if ROOT.search(source):
            item.add_marker(pytest.mark.root)


def pytest_collection_finish() -> None:
    """All modules are loaded by now; no garbage collection needs to look at them again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_log_stays() -> Iterator[None]:
    """A program's main that ran in this process logs to a stderr that pytest has since closed."""
    yield
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.getLogger("offramp").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, a table for each channel, loaded. Only read its directory."""
    return toy.write(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="session")
def raw_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle without a codebook, loaded. Only read its directory."""
    return toy.write(tmp_path_factory.mktemp("bundle") / "raw", coded=False)


@pytest.fixture(scope="session")
def both_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, what is sent answered by both exits. Only read its directory."""
    return toy.write(tmp_path_factory.mktemp("bundle") / "both", sent_answer="both")


@pytest.fixture(scope="session")
def picture_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another toy network, which answers pictures. Only read its directory."""
    return toy.write(tmp_path_factory.mktemp("bundle") / "pictures", coded=False, seeds=(5, 6))


@pytest.fixture(scope="session")
def toy_engine(toy_bundle: Bundle) -> Engine:
    """The toy bundle's head and tail, loaded."""
    engine = Engine(toy_bundle)
    engine.load_head()
    engine.load_tail()
    return engine


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 PNG images of 8x8 pixels, ``00.png`` …; only read it."""
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(toy.images(40, seed=2)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def bundle_folder(toy_bundle: Bundle, tmp_path: Path) -> Callable[[], BundleFolder]:
    """Each call makes a fresh copy of the toy bundle that the test may damage."""
    numbers = count()

    def copy() -> BundleFolder:
        path = tmp_path / f"bundle-{next(numbers)}"
        shutil.copytree(toy_bundle.path, path)
        return BundleFolder(path)

    return copy


@pytest.fixture
def damaged(bundle_folder: Callable[[], BundleFolder], toy_bundle: Bundle) -> BundleFolder:
    """One copy of the toy bundle to damage."""
    folder = bundle_folder()
    assert load_bundle(folder.path).digest == toy_bundle.digest
    return folder


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs certificates, for a test that is marked ``needs_openssl``."""
    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """A server's certificate and key."""
    return authority.sign("server")
