"""Artifacts: the manifest is ORAS's, the same for the same bundle, and nothing odd is read from one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.cli.registry.artifact import (
    ARTIFACT_BYTES,
    BUNDLE_DIGEST,
    LAYERS,
    TITLE,
    VERSION,
    Artifact,
    Blob,
    blob_of,
    digest_of,
    is_plain,
    make_artifact,
    parse_artifact,
)
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, PeerError
from tests.registries import files_of

FILES = {"manifest.json": b"{}", "head.onnx": b"head", "manifest.sig": b"signed"}


def document() -> dict[str, Any]:
    """An artifact's manifest, to be damaged."""
    return dict(json.loads(make_artifact("toy", FILES)))


def test_it_is_what_oras_reads() -> None:
    made = make_artifact("toy", FILES, "1.2.0")
    found = json.loads(made)
    assert found["artifactType"] == "application/vnd.offramp.bundle.v1"
    assert found["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert found["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert found["config"]["digest"] == digest_of(b"{}")
    assert [layer["annotations"][TITLE] for layer in found["layers"]] == sorted(FILES)
    assert found["annotations"] == {
        TITLE: "toy",
        VERSION: "1.2.0",
        BUNDLE_DIGEST: digest_of(b"{}").removeprefix("sha256:"),
    }
    assert make_artifact("toy", dict(reversed(FILES.items())), "1.2.0") == made


def test_it_is_read_as_it_was_made() -> None:
    made = make_artifact("toy", FILES)
    assert parse_artifact(made) == Artifact(digest_of(made), {n: blob_of(data) for n, data in FILES.items()})


def test_before_1_1_the_configuration_says_what_it_is() -> None:
    old = document()
    old["config"]["mediaType"] = old.pop("artifactType")
    assert set(parse_artifact(json.dumps(old).encode()).files) == set(FILES)


@pytest.mark.parametrize(
    "title",
    ["", "../head.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "-rf", "a\0b", "é", "a" * 129],
)
def test_a_title_that_is_not_a_plain_name_is_refused(title: str) -> None:
    bad = document()
    bad["layers"][0]["annotations"][TITLE] = title
    with pytest.raises(BundleError, match="expected a plain file name"):
        parse_artifact(json.dumps(bad).encode())
    assert not is_plain(title)


def test_two_layers_of_one_title_are_refused() -> None:
    bad = document()
    bad["layers"].append(bad["layers"][0])
    with pytest.raises(BundleError, match="two layers"):
        parse_artifact(json.dumps(bad).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"layers": [{"digest": "sha256:12", "size": 1}]}, "digest"),
        ({"layers": [{"digest": "sha512:" + "0" * 64, "size": 1}]}, "digest"),
        ({"layers": [{"digest": digest_of(b""), "size": -1}]}, "size"),
        ({"layers": [{"digest": digest_of(b""), "size": 10**30}]}, "size"),
        ({"layers": [{"digest": digest_of(b""), "size": 1}] * (LAYERS + 1)}, "layers"),
        ({"layers": {}}, "layers"),
    ],
)
def test_what_is_not_a_manifest_is_the_registrys_fault(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PeerError, match=message):
        parse_artifact(json.dumps(document() | change).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "image.index"),
        ({"artifactType": "application/vnd.cncf.helm.chart.v1"}, "helm"),
        ({"artifactType": None}, "oci.empty"),
    ],
)
def test_an_artifact_of_something_else_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_artifact(json.dumps(document() | change).encode())


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b"1" * 50_000))
def test_any_bytes_are_one_error(data: bytes) -> None:
    with pytest.raises((PeerError, BundleError)):
        parse_artifact(data)


def test_a_long_one_is_not_parsed() -> None:
    with pytest.raises(PeerError, match="longer than"):
        parse_artifact(b" " * (ARTIFACT_BYTES + 1))


def test_the_bundles_manifest_has_the_last_word(toy_bundle: Bundle) -> None:
    files = files_of(toy_bundle)
    parse_artifact(make_artifact("toy", files)).check_files(toy_bundle.manifest)
    other = parse_artifact(make_artifact("toy", files | {"head.onnx": b"another"}))
    with pytest.raises(BundleError, match=r"head.onnx: is 7 bytes"):
        other.check_files(toy_bundle.manifest)
    del files["tail.onnx"]
    with pytest.raises(BundleError, match=r"tail.onnx: is not in the artifact"):
        parse_artifact(make_artifact("toy", files)).check_files(toy_bundle.manifest)
    with pytest.raises(BundleError, match="expected at most 2"):
        Artifact("", {"a": Blob("", 3)}).blob("a", 2)
