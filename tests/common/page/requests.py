"""Requests to the page, as tests make them."""

from __future__ import annotations

from email.message import Message

HOST = "127.0.0.1:9102"


def headers(*lines: str, host: str | None = HOST) -> Message:
    """Headers of a request: ``Name: value`` each; an own Host where none is given."""
    made = Message()
    if host is not None:
        made["Host"] = host
    for line in lines:
        name, _, value = line.partition(": ")
        made[name] = value
    return made


def posted(body: bytes, *lines: str, kind: str = "application/json", host: str | None = HOST) -> Message:
    """Headers of a POST of this body."""
    return headers(f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines, host=host)
