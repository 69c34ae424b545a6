"""HOST:PORT as flags take it and as logs print it, and which addresses may be reached in plaintext."""

from __future__ import annotations

import ipaddress

from offramp.common.errors import ConfigError


def join_address(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets: ``[::1]:50051``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(flag: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises ConfigError naming the flag."""
    if "/" in address:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT alone, without a scheme or a path")
    host, colon, port = address.rpartition(":")
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    if inside is None and (_is_ipv6(host.strip("[]")) or _is_ipv6(address)):
        raise ConfigError(f"{flag} {address}: expected an IPv6 address in brackets, as in [::1]:50051")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT with a port of 0 … 65535")
    if not _is_ipv6(inside) if inside is not None else ":" in host or "[" in host or "]" in host:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT, a name, an IPv4 address or [IPV6]")
    return (host if inside is None else inside), int(port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether this host name or address stays on this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def require_secure(flag: str, host: str, insecure: bool, allow: str = "--insecure") -> None:
    """Refuse plaintext beyond this machine unless a flag allows it. Raises ConfigError."""
    if not insecure and not is_loopback(host):
        raise ConfigError(f"{flag} {host}: the connection would be plaintext; say {allow} to allow that")
