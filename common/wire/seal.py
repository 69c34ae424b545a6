"""A device's key: AES-CCM with a tag of 8 bytes (RFC 3610, M = 8, L = 2), as 802.15.4 and OSCORE use it.

Microcontrollers for radio have AES in hardware, and CCM needs its encryption alone. ``cryptography`` is
imported at the first key: only who uses one needs it.
"""

from __future__ import annotations

from pathlib import Path

from offramp.common.errors import AccessError, ConfigError
from offramp.common.files import read_bounded
from offramp.common.wire.datagram import TAG_BYTES

KEY_BYTES = (16, 32)
_FILE_BYTES = 4096


class DeviceKey:
    """One device's key, shared with the gateway. key: 16 or 32 bytes. Raises ConfigError."""

    def __init__(self, key: bytes) -> None:
        if len(key) not in KEY_BYTES:
            raise ConfigError(f"a device's key of {len(key)} bytes, expected 16 or 32")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESCCM
        except ImportError:
            raise ConfigError("a device's key needs cryptography: pip install 'offramp[sign]'") from None
        self._cipher = AESCCM(key, TAG_BYTES)

    def close(self, nonce: bytes, plain: bytes, data: bytes) -> bytes:
        """Hidden bytes, as many as plain ones, and the tag. nonce: 13 bytes; data: authenticated as well."""
        return self._cipher.encrypt(nonce, plain, data)

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        """The plain bytes. Raises AccessError for what this key did not seal."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(nonce, sealed, data)
        except InvalidTag:
            raise AccessError("a datagram that its device's key did not seal") from None


def parse_key(name: str, text: str) -> DeviceKey:
    """A key of 32 or 64 hexadecimal digits. Raises ConfigError, which names where and never repeats it."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) not in KEY_BYTES:
        raise ConfigError(f"{name}: expected a key of 32 or 64 hexadecimal digits")
    return DeviceKey(key)


def read_key(flag: str, path: Path | str) -> DeviceKey:
    """The key in a file. Raises ConfigError, which names the file and never repeats its contents."""
    name = f"{flag} {path}"
    data = read_bounded(path, _FILE_BYTES, name=name, expected="a file with a key")
    return parse_key(name, data.decode("ascii", "replace"))
