"""The link is tested with the fixtures of the device, which is its first user."""

from tests.device.conftest import linked, run, toy_npz

__all__ = ["linked", "run", "toy_npz"]
