"""Bundles that differ by their name, and what a server says that it serves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.wire import transport
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT, Server
from tests.server.client import channel_to
from tests.toy import BundleFolder


def variant(bundle: Bundle, path: Path, name: str) -> Bundle:
    """A copy of the bundle with another name, and so another digest."""
    shutil.copytree(bundle.path, path)
    BundleFolder(path).edit("name", value=name)
    return load_bundle(path)


def description(server: Server) -> pb.DescribeResponse:
    with channel_to(server.address) as channel:
        method: Any = channel.unary_unary(transport.DESCRIBE)
        return pb.DescribeResponse.FromString(method(b"", timeout=WAIT))


def described(server: Server) -> set[str]:
    return {bundle.name for bundle in description(server).bundles}


def described_segments(server: Server) -> set[str]:
    return {segment for bundle in description(server).bundles for segment in bundle.segments}
