"""The forge's definition: what is published was tried, and only what publishes may write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

JOBS: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[2] / ".github" / "workflows" / "ci.yml").read_text()
)["jobs"]
PUBLISH = [name for name in JOBS if name.startswith("publish-")]


def needs(name: str) -> set[str]:
    """All jobs that have to pass before this one."""
    direct = JOBS[name].get("needs", [])
    found = {direct} if isinstance(direct, str) else set(direct)
    return found.union(*map(needs, found))


def uploads(name: str) -> list[str]:
    """The names of the artifacts that a job keeps."""
    return [
        step["with"]["name"]
        for step in JOBS[name]["steps"]
        if step.get("uses", "").startswith("actions/upload-artifact")
    ]


@pytest.mark.parametrize("name", PUBLISH)
def test_nothing_is_published_that_has_not_passed_everything(name: str) -> None:
    assert needs(name) == JOBS.keys() - set(PUBLISH)
    assert JOBS[name]["environment"] == "release"
    # It builds nothing and checks nothing out: what it has are files that were tried.
    text = str(JOBS[name])
    assert "checkout" not in text and "docker build " not in text and "pip " not in text


def test_only_what_publishes_may_write() -> None:
    for name, job in JOBS.items():
        writes = {what for what, right in job.get("permissions", {}).items() if right == "write"}
        assert bool(writes) == (name in PUBLISH), name


def test_only_a_tag_publishes() -> None:
    for name in PUBLISH:
        gates = [JOBS[each].get("if", "") for each in needs(name)]
        assert any("refs/tags/v" in gate for gate in gates)


@pytest.mark.parametrize(
    ("job", "trial"), [("wheels-tried", ".ci/try_wheel.sh"), ("images", "deploy/containers/smoke.py")]
)
def test_what_is_kept_was_tried(job: str, trial: str) -> None:
    assert any(trial in step.get("run", "") for step in JOBS[job]["steps"])
    kept = [*uploads("wheels"), *uploads("images"), *uploads("sources")]
    taken = str([JOBS[name]["steps"] for name in PUBLISH])
    assert all(name.partition("${{")[0] in taken for name in kept)
