"""Write a bundle: the one place that does, for training, calibration and tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from offramp.common.bundle.document import manifest_text
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import MANIFEST, FileEntry, Manifest
from offramp.common.files import replace_file


def write_bundle(directory: Path | str, manifest: Manifest, files: dict[str, bytes]) -> Bundle:
    """Write a bundle, then load it as a stranger would.

    files: contents by name; ``manifest.files`` must describe them (see ``file_entries``). Files of the
    bundle that are already there are replaced, others are left alone. Raises BundleError.
    """
    text = manifest_text(manifest)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        replace_file(directory / name, data)
    replace_file(directory / MANIFEST, text)
    return load_bundle(directory)


def file_entries(files: dict[str, bytes]) -> dict[str, FileEntry]:
    """Size and SHA-256 of each of a bundle's files, for its manifest."""
    return {
        name: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
