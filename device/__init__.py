"""The device's side. ``from offramp.device import Device`` is the whole of it.

Importing this package loads nothing: ``edge-device --help`` should not wait for a runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.device.device import Correction, Device, Result, preprocess

__all__ = ["Correction", "Device", "Result", "preprocess"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from offramp.device import device as pipeline

    return getattr(pipeline, name)
