"""A device's key is AES-CCM as its specification has it."""

from __future__ import annotations

import sys

import pytest

from offramp.common.errors import AccessError, ConfigError
from offramp.common.wire.seal import DeviceKey


def test_packet_vector_1_of_rfc_3610() -> None:
    key = DeviceKey(bytes.fromhex("c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"))
    nonce = bytes.fromhex("00000003020100a0a1a2a3a4a5")
    data, plain = bytes(range(8)), bytes(range(8, 31))
    sealed = bytes.fromhex("588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0")

    assert key.close(nonce, plain, data) == sealed
    assert key.open(nonce, sealed, data) == plain
    with pytest.raises(AccessError):
        key.open(nonce, sealed, data + b"x")


@pytest.mark.parametrize("size", [0, 15, 24, 33])
def test_keys_of_other_lengths(size: int) -> None:
    with pytest.raises(ConfigError, match=f"key of {size} bytes, expected 16 or 32"):
        DeviceKey(bytes(size))


def test_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match=r"pip install 'offramp\[sign\]'"):
        DeviceKey(bytes(16))
