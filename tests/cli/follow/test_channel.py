"""The directory of a follower, and what comes into it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.cli.follow.channel import Channel, Folder
from offramp.cli.follow.state import Held
from offramp.cli.registry.layout import Layout
from offramp.cli.registry.reference import parse_reference
from offramp.cli.registry.transfer import STAGING, push
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, ConfigError


@pytest.fixture
def channel(tmp_path: Path, toy_bundle: Bundle) -> Iterator[Channel]:
    """One that names the toy bundle, with a directory for it."""
    reference = parse_reference(f"oci-layout:{tmp_path / 'layout'}:stable")
    asyncio.run(push(toy_bundle, Layout(reference)))
    arguments = argparse.Namespace(reference=reference, timeout=30.0)
    with Folder(tmp_path / "dir", None) as folder:
        yield Channel(arguments, folder, None)


async def take(channel: Channel) -> Held:
    """What the channel names, pulled."""
    artifact = await channel.look(None)
    assert artifact is not None
    held = await channel.fetch(artifact)
    assert isinstance(held, Held)
    return held


def test_what_a_tag_names_is_pulled_once(channel: Channel, toy_bundle: Bundle, tmp_path: Path) -> None:
    held = asyncio.run(take(channel))
    assert held.bundle == toy_bundle.digest.hex()
    assert asyncio.run(channel.look(held.artifact)) is None
    place = tmp_path / "dir" / held.folder
    before = place.stat().st_ino
    assert asyncio.run(take(channel)) == held
    assert place.stat().st_ino == before


@pytest.mark.parametrize("damage", ["bytes", "link", "file"])
def test_what_was_damaged_is_pulled_again(channel: Channel, tmp_path: Path, damage: str) -> None:
    held = asyncio.run(take(channel))
    place = tmp_path / "dir" / held.folder
    if damage == "bytes":
        (place / "tail.onnx").write_bytes(b"x")
    else:
        place.rename(tmp_path / "elsewhere")
        if damage == "link":
            place.symlink_to(tmp_path / "nowhere")
        else:
            place.write_text("x")
    assert asyncio.run(take(channel)) == held
    assert (place / "tail.onnx").stat().st_size > 1
    assert not place.is_symlink()


def test_a_channel_without_the_tag_is_one_error(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "layout" / "index.json").write_text('{"manifests": []}')
    with pytest.raises(BundleError, match="is not there"):
        asyncio.run(channel.look(None))


def test_a_directory_has_one_follower(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            Folder(tmp_path / "dir", None),
            pytest.raises(ConfigError, match="another follower has it"),
        ):
            Folder(tmp_path / "dir", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a directory"):
        Folder(tmp_path / "file", None)


def test_only_what_is_its_own_is_cleaned_away(tmp_path: Path) -> None:
    kept = Held(artifact="sha256:" + "1" * 64, bundle="1" * 64)
    for name in (kept.folder, "2" * 16, f"{STAGING}abc", "my-bundle", "3" * 15):
        (tmp_path / name).mkdir()
    with Folder(tmp_path, None) as folder:
        folder.clean([kept])
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {kept.folder, "my-bundle", "3" * 15}
