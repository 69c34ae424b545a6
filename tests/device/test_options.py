"""Options of the Python API: the ranges of their flags, and one error that names what is wrong."""

from __future__ import annotations

import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.settings import check_argument
from offramp.device import (
    AuditOptions,
    DatagramOptions,
    Device,
    KeepOptions,
    LinkOptions,
    PictureOptions,
    SpoolOptions,
    SteeringOptions,
)
from offramp.device.settings import DeviceSettings

GROUPS: dict[str, Any] = {
    "link": LinkOptions,
    "steering": SteeringOptions,
    "pictures": PictureOptions,
    "spool": SpoolOptions,
    "audits": AuditOptions,
    "keep": KeepOptions,
    "datagrams": DatagramOptions,
}


def device(bundle: Any, **given: Any) -> Device:
    """A device with these arguments and options, each in the group that has it."""
    for name, kind in GROUPS.items():
        mine = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
        if mine:
            given[name] = kind(**mine)
    return Device(bundle, **{"server": "127.0.0.1:1"} | given)


NAN, INF = float("nan"), float("inf")
WRONG: dict[str, tuple[object, ...]] = {
    "threshold": (NAN, 3, -1, INF, -INF, True, "0.5", [0.5], 1 + 1e-9, np.float32(2), np.bool_(True), 1j),
    "timeout": (NAN, 0, -1, INF, None, "2", 1e9, False),
    "window": (0, -1, 1.5, NAN, 4097, True, None, "16", np.float64(3)),
    "threads": (0, -4, 1.0, 1000, 10**400, None),
    "insecure": ("no", 0, None),
    "coalesce": (NAN, -0.001, 60.5, INF, None, True),
    "coalesce_frames": (0, 5000, 2.5),
    "breaker": (0, -1, NAN, 1e3),
    "byte_budget": (0, -5, NAN, INF, "2kB/s", True),
    "target_latency": (0, NAN, -1, 3601, "fast"),
    "accuracy_floor": (NAN, 85, -0.1),
    "threshold_floor": (NAN, 2, -1),
    "threshold_ceiling": (NAN, 2, -1),
    "spool": (5, b"spool", "", object()),
    "spool_bytes": (0, -1, 1e9, NAN, 1 << 50),
    "picture_threshold": (NAN, 2, -1),
    "picture_quality": (-1, 101, 20.0, None),
    "audit": (NAN, -0.1, 1.5, "0.01", None, True),
    "audit_seed": (-1, 1.5, 1 << 32, "7", True),
    "keep": (5, b"kept", "", object()),
    "keep_bytes": (0, 65_535, 1e9, "1GB", 1 << 50, True, None),
    "keep_share": (NAN, -0.1, 1.5, "0.01", None),
    "server": (50051, [], [1], b"a:1", "nonsense", ["a:1", None]),
    "key_file": (5, b"key", ""),
    "device_number": (-1, 65_536, 1.5, "7", True),
    "sequence_file": (5, ""),
    "packet_bytes": (7, 65_508, 1200.0, None),
    "mqtt_name": (5, ""),
    "user_file": (5, ""),
    "providers": (5, None, [], [1], b"cpu", "tpu", "cpu,cuda", "cuda:x"),
    "on_correction": (5, "print"),
    "bundle": ("models/x", None, Path("models")),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_argument_is_refused_by_its_name(toy_bundle: Bundle, name: str, value: object) -> None:
    before = threading.active_count()
    given: dict[str, Any] = {"bundle": toy_bundle, "server": "127.0.0.1:1", name: value}
    with pytest.raises(ConfigError) as error:
        device(given.pop("bundle"), **given)
    assert name in str(error.value) and "expected" in str(error.value) and "\n" not in str(error.value)
    assert threading.active_count() == before


def test_what_is_in_range_is_taken_whatever_kind_of_number_it_is(toy_bundle: Bundle) -> None:
    thresholds: list[Any] = [0, 1, 0.5, np.float32(0.5), np.float64(1), np.int64(0), None]
    for threshold in thresholds:
        given: dict[str, Any] = {"threshold": threshold, "window": np.int64(4), "timeout": 1}
        with device(toy_bundle, server=("127.0.0.1:1",), **given) as made:
            assert 0 <= made.threshold <= 1


def test_the_range_is_that_of_the_flag_in_the_arguments_unit() -> None:
    check_argument(DeviceSettings, "target_latency", 3600, per_unit=1000)
    with pytest.raises(ConfigError, match=r"target_latency=3601: expected a number, more than 0 … 3600$"):
        check_argument(DeviceSettings, "target_latency", 3601, per_unit=1000)
    with pytest.raises(ConfigError, match=r"window=4097: expected a whole number, 1 … 4096$"):
        check_argument(DeviceSettings, "window", 4097)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("link", {"timeout": 1}, "LinkOptions"),
        ("link", 2.0, "LinkOptions"),
        ("steering", 500, "SteeringOptions"),
        ("pictures", 0.5, "PictureOptions"),
        ("spool", "spool.db", "SpoolOptions"),
        ("spool", LinkOptions(), "SpoolOptions"),
    ],
)
def test_a_group_is_made_of_its_own_class(toy_bundle: Bundle, name: str, value: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=.*: expected {kind}\(…\)$"):
        Device(toy_bundle, server="127.0.0.1:1", **{name: value})


def test_the_flags_reach_the_options_in_seconds() -> None:
    given = {"coalesce": 5, "target_latency": 80, "window": 3, "spool": "f", "picture_threshold": 0.5}
    settings = DeviceSettings.model_validate({"bundle": "b", "tls_ca": "ca.pem"} | given)
    link = LinkOptions.of(settings)
    assert (link.coalesce, link.window, link.security.ca) == (0.005, 3, "ca.pem")
    assert SteeringOptions.of(settings).target_latency == 0.08 and SteeringOptions.of(settings).steers
    assert PictureOptions.of(settings) == PictureOptions(0.5, 20)
    assert SpoolOptions.of(settings) == SpoolOptions("f", 64 << 20)


@pytest.mark.parametrize("kind", GROUPS.values(), ids=GROUPS)
def test_the_defaults_are_those_of_the_flags(kind: Any) -> None:
    assert kind() == kind.of(DeviceSettings.model_validate({"bundle": "b"}))
