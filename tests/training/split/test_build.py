"""A bundle's name; whole bundles: tests/cli/test_split.py."""

from pathlib import Path

import pytest

from offramp.common.bundle.manifest import Name
from offramp.training.split.build import bundle_name


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my-split", "my-split"), ("Meine Äpfel (2)", "meine-pfel-2"), ("...", "split"), ("x" * 200, "x" * 100)],
)
def test_a_bundle_is_named_as_its_folder(folder: str, name: str) -> None:
    from pydantic import TypeAdapter

    found = bundle_name(Path("/somewhere") / folder)
    assert found == TypeAdapter(Name).validate_python(found) == name
