"""What the benchmarks' tests share: pictures with labels, and whether network namespaces can be made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests import toy

namespaces = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") for tool in ("ip", "tc")),
    reason="network namespaces need root and iproute2",
)


@pytest.fixture(scope="session")
def labelled_images(toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's pictures and a ``labels.csv``; only read it."""
    folder = tmp_path_factory.mktemp("labelled")
    names = sorted(path.name for path in toy_images.glob("*.png"))
    for name in names:
        shutil.copy(toy_images / name, folder / name)
    rows = [f"{name},{toy.CLASSES[index % len(toy.CLASSES)]}" for index, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return folder
