"""What is watched: addresses, URLs, and files of targets as Prometheus reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.common.wire.address import split_address

FILE_BYTES = 1 << 24
TARGETS = 4096
"""In one view, at most."""
NAME = 80
"""Characters of a target that are shown."""


@dataclass(frozen=True)
class Target:
    """Where a metrics page is."""

    name: str
    url: str


def read_sources(sources: Sequence[str]) -> list[Target]:
    """The targets of addresses, URLs and files. Raises ConfigError."""
    found: dict[Target, None] = {}
    for source in sources:
        if source.startswith(("http://", "https://")):
            found[Target(printable(source, NAME), source)] = None
        elif source.endswith(".json"):
            found |= dict.fromkeys(read_file(source))
        else:
            found[address(source, source)] = None
    if len(found) > TARGETS:
        raise ConfigError(f"{len(found)} targets, expected {TARGETS} at most")
    return list(found)


def address(where: str, text: str, scheme: str = "http", path: str = "/metrics") -> Target:
    """The target of HOST:PORT. Raises ConfigError."""
    split_address(where, text)
    return Target(printable(text, NAME), f"{scheme}://{text}{path}")


def read_file(name: str) -> list[Target]:
    """The targets of a file in Prometheus' file_sd format. Raises ConfigError."""
    wanted = 'expected [{"targets": ["HOST:PORT", …], "labels": {…}}, …]'
    try:
        groups = json.loads(read_bounded(name, FILE_BYTES, expected="a file of targets"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{name}: is not JSON, {wanted}") from None
    targets = []
    if not isinstance(groups, list):
        raise ConfigError(f"{name}: is not a list, {wanted}")
    for group in groups:
        labels = group.get("labels", {}) if isinstance(group, dict) else None
        texts = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(labels, dict) or not isinstance(texts, list):
            raise ConfigError(f"{name}: has a group that is not an object with targets and labels, {wanted}")
        scheme, path = labels.get("__scheme__", "http"), labels.get("__metrics_path__", "/metrics")
        if scheme not in ("http", "https") or not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(
                f"{name}: __scheme__ or __metrics_path__ is wrong, expected http or https, and a path"
            )
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"{name}: has a target that is not a string, {wanted}")
            targets.append(address(f"{name}:", text, scheme, path))
    return targets
