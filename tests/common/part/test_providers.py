"""Which execution provider runs a graph. With OpenVINO's: ``tests/openvino``.

ONNX Runtime's plain wheel has a second provider, Azure's, which takes no operator of a classifier: it stands
for an accelerator that takes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import HEAD, TAIL
from offramp.common.errors import BundleError, ConfigError
from offramp.common.part import engine, providers, session, trial
from offramp.common.part.engine import Engine
from offramp.common.part.providers import CPU, Placement, Provider, in_trial, parse, providers_of
from tests import toy
from tests.toy import BundleFolder

log = logging.getLogger("offramp.test")
CUDA_CPU = parse(["cuda", "cpu"])


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short name for the plain wheel's second provider."""
    monkeypatch.setitem(providers.NAMES, "azure", "AzureExecutionProvider")
    monkeypatch.setattr(engine, "_on_cpu_only", {})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["cpu"], CPU),
        (["cuda", "cpu"], (Provider("cuda"), Provider("cpu"))),
        ([" tensorrt ", "cuda"], (Provider("tensorrt"), Provider("cuda"))),
        (["cuda:device_id=1:use_tf32=0"], (Provider("cuda", (("device_id", "1"), ("use_tf32", "0"))),)),
        (["openvino:device_type=AUTO:GPU"], (Provider("openvino", (("device_type", "AUTO:GPU"),)),)),
        (["cuda:x="], (Provider("cuda", (("x", ""),)),)),
    ],
)
def test_a_list_is_read_and_written_the_same(texts: list[str], expected: tuple[Provider, ...]) -> None:
    assert parse(texts) == expected
    assert parse([str(each) for each in expected]) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tpu", "--providers 'tpu': not a provider, expected one of acl, "),
        ("", "--providers '': not a provider"),
        ([], "expected at least one provider"),
        ("cpu,cuda", "cpu: runs every operator, expected it last"),
        ("cuda,cuda,cpu", "cuda: is there twice, expected once"),
        ("cuda:device_id", "'cuda:device_id': expected cuda:OPTION=VALUE"),
        ("cuda:=1", "'cuda:=1': expected cuda:OPTION=VALUE"),
        ("CUDAExecutionProvider", "not a provider"),
        (5, "providers=5: expected a provider such as cpu, or a list of them"),
        ([1], r"providers=\[1\]: expected a provider"),
        (None, "providers=None: expected a provider"),
        (b"cpu", "providers=b'cpu': expected a provider"),
    ],
)
def test_what_is_not_a_list_of_providers_is_one_error(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        providers_of(value)
    assert "\n" not in str(error.value)


def test_a_provider_with_threads_of_its_own_keeps_to_ours() -> None:
    name, options = parse(["openvino:device_type=CPU"])[0].arguments(3)
    assert (name, options) == ("OpenVINOExecutionProvider", {"num_of_threads": "3", "device_type": "CPU"})
    assert parse(["openvino:num_of_threads=8"])[0].arguments(3)[1] == {"num_of_threads": "8"}
    assert CPU[0].arguments(3) == ("CPUExecutionProvider", {})


@pytest.mark.parametrize(
    ("asked", "tried", "untried"),
    [
        ("cpu", "cpu", None),
        ("openvino,cpu", "openvino,cpu", None),
        ("openvino", "openvino", None),
        ("tensorrt,cuda,cpu", "cpu", "tensorrt, cuda: not used for the trial"),
        ("cuda", "cpu", "cuda: not used for the trial"),
        ("cuda,openvino", "openvino,cpu", "cuda: not used for the trial"),
    ],
)
def test_the_trial_uses_what_has_room_in_it(asked: str, tried: str, untried: str | None) -> None:
    used, why = in_trial(providers_of(asked))
    assert ",".join(map(str, used)) == tried
    assert why == untried or (why is not None and untried is not None and why.startswith(untried))


def test_what_a_placement_says() -> None:
    whole = Placement(("openvino", "cpu"), ("openvino", "cpu"), {"openvino": 1.0, "cpu": 0.0})
    assert (whole.main, whole.warning, str(whole)) == ("openvino", None, "openvino")
    part = Placement(("openvino", "cpu"), ("openvino", "cpu"), {"openvino": 0.25, "cpu": 0.75})
    assert (part.main, part.warning) == ("cpu", None)
    assert str(part) == "openvino (25.0% of its operators), cpu (75.0% of its operators)"
    idle = Placement(("openvino", "cpu"), ("openvino", "cpu"), {"openvino": 0.0, "cpu": 1.0})
    assert idle.warning is not None and idle.warning == "openvino takes none of its operators; runs on cpu"
    unknown = Placement(("cuda", "cpu"), ("cuda", "cpu"), None)
    assert (unknown.main, unknown.warning, str(unknown)) == ("cuda", None, "cuda, cpu")


def test_what_cannot_be_had_is_left_out_with_one_warning(
    toy_bundle: Bundle, toy_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    both = Engine(toy_bundle, providers=CUDA_CPU)
    both.load(HEAD, TAIL)
    both.log_placements(log, HEAD)

    assert both.placements[HEAD] == both.placements[TAIL]
    assert (both.placements[HEAD].main, both.placements[HEAD].asked) == ("cpu", ("cuda", "cpu"))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "head.onnx: no cuda: this ONNX Runtime has only cpu" in warnings[0].getMessage()
    assert warnings[0].getMessage().endswith("; runs on cpu")
    images = toy.images(5)
    assert (both.head(images)[0] == toy_engine.head(images)[0]).all()


def test_without_cpu_in_the_list_it_is_refused(toy_bundle: Bundle) -> None:
    with pytest.raises(
        ConfigError, match="--providers tensorrt,cuda: this ONNX Runtime has only cpu"
    ) as error:
        Engine(toy_bundle, providers=parse(["tensorrt", "cuda"])).load(HEAD)
    assert "cpu at the end of the list" in str(error.value)


def test_the_cpu_alone_says_nothing(toy_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    toy_engine.log_placements(log, HEAD, TAIL)
    assert caplog.records == []
    assert toy_engine.placements[HEAD] == providers.ON_CPU


@pytest.mark.usefixtures("azure")
def test_a_provider_that_takes_no_operator_is_said(
    toy_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    idle = Engine(toy_bundle, providers=parse(["azure", "cpu"]))
    idle.load(TAIL)
    caplog.set_level(logging.INFO)
    idle.log_placements(log, TAIL)

    assert idle.placements[TAIL].shares == {"azure": 0.0, "cpu": 1.0}
    assert idle.placements[TAIL].main == "cpu"
    (warning, note) = [record.getMessage() for record in caplog.records]
    assert "tail.onnx: azure takes none of its operators; runs on cpu" in warning
    assert "azure: not used for the trial in a child process" in note


@pytest.mark.usefixtures("azure")
def test_without_cpu_no_operator_goes_to_the_cpu(toy_bundle: Bundle) -> None:
    with pytest.raises(
        BundleError, match=r"tail\.onnx: no provider runs all of it, and cpu is not in"
    ) as error:
        Engine(toy_bundle, providers=parse(["azure"])).load(TAIL)
    assert str(toy_bundle.path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("azure")
def test_a_provider_that_ends_the_trial_is_left_out(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The child does not know its name, and ends.
    monkeypatch.setattr(providers, "ON_HOST", providers.ON_HOST | {"azure"})
    fallen = Engine(toy_bundle, providers=parse(["azure", "cpu"]))
    fallen.load(HEAD)
    fallen.log_placements(log, HEAD)

    assert (fallen.placements[HEAD].used, fallen.placements[HEAD].asked) == (("cpu",), ("azure", "cpu"))
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no azure: head.onnx: ends the process that tries it (status 1)" in message
    # It is not tried again.
    monkeypatch.setattr(trial, "_python", lambda: "/bin/false")
    again = Engine(toy_bundle, providers=parse(["azure", "cpu"]))
    again.load(HEAD)
    assert again.placements == fallen.placements

    refused = Engine(toy_bundle, providers=parse(["azure"]))
    with pytest.raises(BundleError, match="ends the process that tries it"):
        refused.load(HEAD)


@pytest.mark.usefixtures("azure")
def test_a_graph_that_runs_nowhere_is_the_bundle_s_fault(damaged: BundleFolder) -> None:
    damaged.put(TAIL, toy.head())
    for asked in (["azure", "cpu"], ["cuda", "cpu"]):
        with pytest.raises(BundleError, match=r"tail\.onnx: its inputs are"):
            Engine(load_bundle(damaged.path), providers=parse(asked)).load(TAIL)


class Started:
    """A session of these providers."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def get_providers(self) -> list[str]:
        return [providers.NAMES[name] for name in self._names]


@pytest.mark.parametrize(
    ("broken", "silent", "used", "left_out"),
    [
        ({}, (), ("tensorrt", "cuda", "cpu"), {}),
        ({"cuda": "no device"}, (), ("tensorrt", "cpu"), {"cuda": "no device"}),
        ({"tensorrt": "a", "cuda": "b"}, (), ("cpu",), {"tensorrt": "a", "cuda": "b"}),
        (
            {},
            ("cuda",),
            ("tensorrt", "cpu"),
            {"cuda": "ONNX Runtime cannot start it: a library or a device is missing"},
        ),
    ],
)
def test_the_one_at_fault_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
    broken: dict[str, str],
    silent: tuple[str, ...],
    used: tuple[str, ...],
    left_out: dict[str, str],
) -> None:
    """Providers that this machine does not have, played."""

    def start(_data: bytes, _threads: int, on: Sequence[Provider], _on_cpu_too: bool) -> Any:
        for each in on:
            if each.name in broken:
                raise RuntimeError(broken[each.name])
        return Started([each.name for each in on if each.name not in silent])

    monkeypatch.setattr(session, "_not_built_in", lambda _: {})
    monkeypatch.setattr(session, "_started", start)
    _, placement = session._placed("head.onnx", b"", 1, parse(["tensorrt", "cuda", "cpu"]))
    assert (placement.used, dict(placement.left_out)) == (used, left_out)

    if len(broken) == 2:
        with pytest.raises(BundleError, match=r"cpu is not in --providers \(tensorrt: a; cuda: b\)"):
            session._placed("head.onnx", b"", 1, parse(["tensorrt", "cuda"]))
