"""The device's side. ``from offramp.device import Device`` is the whole of it.

Importing this package loads nothing: ``edge-device --help`` should not wait for a runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.device.device import Device
    from offramp.device.options import (
        AuditOptions,
        DatagramOptions,
        KeepOptions,
        LinkOptions,
        PictureOptions,
        SpoolOptions,
        SteeringOptions,
    )
    from offramp.device.result import Correction, Result
    from offramp.link.security import Security

__all__ = [
    "AuditOptions",
    "Correction",
    "DatagramOptions",
    "Device",
    "KeepOptions",
    "LinkOptions",
    "PictureOptions",
    "Result",
    "Security",
    "SpoolOptions",
    "SteeringOptions",
    "preprocess",
]

_MODULES = {
    "AuditOptions": "offramp.device.options",
    "Correction": "offramp.device.result",
    "DatagramOptions": "offramp.device.options",
    "Device": "offramp.device.device",
    "KeepOptions": "offramp.device.options",
    "LinkOptions": "offramp.device.options",
    "PictureOptions": "offramp.device.options",
    "Result": "offramp.device.result",
    "Security": "offramp.link.security",
    "SpoolOptions": "offramp.device.options",
    "SteeringOptions": "offramp.device.options",
    "preprocess": "offramp.device.inputs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
