"""Files of targets, as Prometheus reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.cli.fleet.targets import read_sources
from offramp.common.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[{]", "is not JSON, expected"),
        ("[" * 100_000, "is not JSON, expected"),
        ("{}", "is not a list, expected"),
        ("[3]", "has a group that is not an object with targets and labels, expected"),
        ('[{"targets": "a:1"}]', "has a group that is not an object with targets and labels, expected"),
        ('[{"targets": [1]}]', "has a target that is not a string, expected"),
        (
            '[{"targets": ["a:1"], "labels": {"__scheme__": "file"}}]',
            "__scheme__ or __metrics_path__ is wrong, expected http or https, and a path",
        ),
        (
            '[{"targets": ["a:1"], "labels": {"__metrics_path__": 3}}]',
            "__scheme__ or __metrics_path__ is wrong",
        ),
        ('[{"targets": ["no-port"]}]', "no-port: expected HOST:PORT"),
    ],
)
def test_a_wrong_file_of_targets_is_refused(tmp_path: Path, content: str, error: str) -> None:
    path = tmp_path / "targets.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        read_sources([str(path)])
    assert str(path) in str(raised.value) and error in str(raised.value)


def test_a_file_says_scheme_and_path(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    labels = {"__scheme__": "https", "__metrics_path__": "/fleet/metrics", "site": "north"}
    path.write_text(json.dumps([{"targets": ["a:1", "a:1"], "labels": labels}, {"targets": ["[::1]:2"]}]))
    assert [each.url for each in read_sources([str(path)])] == [
        "https://a:1/fleet/metrics",
        "http://[::1]:2/metrics",
    ]
