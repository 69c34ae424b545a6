"""HOST:PORT as flags take it and as logs print it. ``config.split_address`` reads what this writes."""

from __future__ import annotations


def join_address(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets: ``[::1]:50051``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
