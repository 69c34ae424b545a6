"""One neural network on two machines.

``offramp.split`` makes a pair of a trained classifier (extra ``[split,train]``); ``offramp.Device`` is the
device's side of one (extra ``[device]``). Importing this package loads nothing else: a device needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.common.bundle.load import load_bundle
    from offramp.device.device import Device
    from offramp.training.split.api import Pair, Progress, split

__all__ = ["Device", "Pair", "Progress", "load_bundle", "split"]

_MODULES = {
    "Device": "offramp.device.device",
    "Pair": "offramp.training.split.api",
    "Progress": "offramp.training.split.api",
    "load_bundle": "offramp.common.bundle.load",
    "split": "offramp.training.split.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
